# Kills one shell (pid $1, marker $2) and all that came of it: its session, what carries the marker in its environment
# although it left the session (setsid), and every descendant of those. Again and again until a round finds nobody,
# for a process may fork while it is looked at. Builtins only, in a shell that is already there: it works where a
# sandbox has used up its processes.
__skyrl_kill() {
  local shell=$1 marker=$2 round path pid stat variable grown
  local -a parents victims fields
  for ((round = 0; round < 100; round++)); do
    parents=() victims=()
    for path in /proc/[0-9]*; do
      pid=${path#/proc/}
      { IFS='' read -r stat <"$path/stat"; } 2>/dev/null || continue
      fields=(${stat##*) }) # state, parent, group, session: proc(5)
      [[ ${fields[0]} == [ZX] || $pid == "$$" ]] && continue
      parents[pid]=${fields[1]}
      if ((pid == shell || fields[3] == shell)); then
        victims[pid]=1
        continue
      fi
      while IFS='' read -r -d '' variable; do
        [[ $variable == "SKYRL_SHELL=$marker" ]] && victims[pid]=1 && break
      done 2>/dev/null <"$path/environ"
    done
    grown=1
    while ((grown)); do
      grown=0
      for pid in "${!parents[@]}"; do
        if [[ -z ${victims[pid]} && -n ${victims[parents[pid]]} ]]; then
          victims[pid]=1 grown=1
        fi
      done
    done
    ((${#victims[@]})) || return 0
    kill -KILL "${!victims[@]}" 2>/dev/null
  done
  return 1
}
