# Process 1 of a sandbox of Apptainer. It reaps, does what the runtime asks for, a line each, and ends with its input:
# then the kernel kills all else. A signal from the sandbox does not reach it.
exec 2>/dev/null
set -m # a program gets a process group of its own, and can be interrupted
while builtin read -r line; do
  case $line in
    start:*)
      number=/.skyrl/${line#*:}
      /bin/bash --noprofile --norc "$number.sh" <"$number.in" >"$number.out" 2>"$number.err" &
      answer=$!
      ;;
    wait:*)
      builtin wait "${line#*:}" # it has ended
      answer=$?
      ;;
    signal:*)
      builtin kill "-${line#*:}" -1 # there may be nobody
      answer=0
      ;;
  esac
  builtin echo "done $answer"
done
