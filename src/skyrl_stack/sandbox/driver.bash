# Process of one persistent shell: takes "length\ntext mark\n" on stdin, runs each text in this very shell, and ends
# both streams of it with the mark, which it reads only afterwards. Its own streams are null, so that a traced shell
# (set -x) traces the command alone; the command's stdin is null, so that it cannot eat what is to come.
exec 250<&0 251>&1 252>&2 </dev/null >/dev/null 2>/dev/null
while builtin read -r -u 250 __skyrl_size && LC_ALL=C IFS='' builtin read -r -N "$__skyrl_size" -u 250 __skyrl_text; do
  builtin eval "$__skyrl_text" >&251 2>&252
  __skyrl_code=$?
  builtin read -r -u 250 __skyrl_mark
  builtin printf '\0%s\0%s\0' "$__skyrl_mark" "$__skyrl_code" >&251
  { builtin pwd; builtin printf '\0'; builtin declare -px; builtin printf '\0'; } >&251
  builtin printf '\0%s\0' "$__skyrl_mark" >&252
done
