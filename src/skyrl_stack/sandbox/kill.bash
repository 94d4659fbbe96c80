# Kills all that came of the shell with the marker $1: what carries it in its environment, what is in such a process's
# session, and every descendant of those; again until nobody is found, for a process may fork while it is looked at.
# As root, from inside of the sandbox: `Container.kill` does the same from outside.
marker=SKYRL_SHELL=$1
for round in {1..50}; do
  parents=() sessions=() victims=()
  for entry in /proc/[0-9]*; do
    pid=${entry#/proc/}
    [[ $pid == 1 || $pid == "$$" ]] && continue
    { builtin read -r line <"$entry/stat"; } 2>/dev/null || continue
    set -f -- ${line##*) }  # state, parent, group, session
    [[ $1 == [ZX] ]] && continue
    parents[pid]=$2 sessions[pid]=$4
    {
      while IFS='' builtin read -r -d '' variable; do
        [[ $variable == "$marker" ]] && victims[pid]=1
      done <"$entry/environ"
    } 2>/dev/null
    set +f
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
  ((${#victims[@]})) || exit 0
  builtin kill -KILL "${!victims[@]}" 2>/dev/null  # parents first: a shell would tell of the end of its children
done
exit 1
