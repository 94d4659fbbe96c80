# Process 1 of a sandbox of a Podman behind a socket. It reaps, does what the runtime asks for, a line each, and ends with
# its input. Its arguments are the sizes that the sandbox's cgroups hold: where the kernel refused a process or killed one
# for them, all are killed, which is what going over a size means. All of it by builtins, for there may be no process
# to be had; and a signal from the sandbox does not reach process 1.
cgroups=/sys/fs/cgroup

# Prints nothing; sets `found` to the number behind the word $1 in the files that are there.
count() {
  found=0
  local file key value
  for file in "${@:2}"; do
    [[ -r $file ]] && while builtin read -r key value; do [[ $key == "$1" ]] && found=$value; done <"$file"
  done
} 2>/dev/null

count_refusals() {
  case $1 in
    processes) count max "$cgroups/pids.events" "$cgroups/pids/pids.events" ;;
    memory) count oom_kill "$cgroups/memory.events" "$cgroups/memory/memory.oom_control" ;;
  esac
}

# Kills all that came of the shell with the marker $1: what carries it in its environment, what is in such a process's
# session, and every descendant of those; again until nobody is found, for a process may fork while it is looked at.
# `Container.kill` does the same from outside.
kill_shell() {
  local round entry pid line variable grown
  for round in {1..50}; do
    local -a fields=() parents=() sessions=() victims=()
    for entry in /proc/[0-9]*; do
      pid=${entry#/proc/}
      [[ $pid == 1 ]] && continue
      { builtin read -r line <"$entry/stat"; } 2>/dev/null || continue
      fields=(${line##*) }) # state, parent, group, session
      [[ ${fields[0]} == [ZX] ]] && continue
      parents[pid]=${fields[1]} sessions[pid]=${fields[3]}
      {
        while IFS='' builtin read -r -d '' variable; do
          [[ $variable == "SKYRL_SHELL=$1" ]] && victims[pid]=1
        done <"$entry/environ"
      } 2>/dev/null
    done
    for pid in "${!sessions[@]}"; do
      [[ ${victims[sessions[pid]]} ]] && victims[pid]=1
    done
    grown=1
    while [[ $grown ]]; do
      grown=
      for pid in "${!parents[@]}"; do
        [[ ${victims[pid]} || ! ${victims[parents[pid]]} ]] || victims[pid]=1 grown=1
      done
    done
    ((${#victims[@]})) || return 0
    builtin kill -KILL "${!victims[@]}" 2>/dev/null # parents first: a shell would tell of the end of its children
  done
  return 1
}

declare -A refusals
for size in "$@"; do
  count_refusals "$size"
  refusals[$size]=$found
done
line=
while piece=; do
  if builtin read -r -t 0.2 piece; then # no IFS='' before it: bash keeps that, where the time is over
    line+=$piece
    case $line in
      kill:*) kill_shell "${line#*:}" ;;
      signal:*) builtin kill "-${line#*:}" -1 2>/dev/null || : ;; # there may be nobody
      *) false ;;
    esac
    builtin echo "done $?"
    line=
  elif (($? > 128)); then
    line+=$piece # what came within a fifth of a second may be half of a line
  else
    exit
  fi
  for size in "$@"; do
    count_refusals "$size"
    if ((found > refusals[$size])); then
      builtin echo "excess $size"
      builtin kill -KILL -1 2>/dev/null
      count_refusals "$size" # some may have been refused since
      refusals[$size]=$found
    fi
  done
done
