#!/bin/sh
# Put the parts that pack.py made in place, on a machine that has Python 3.12, PyTorch and CUDA but no network. As root.
#   unpack.sh PARTS    afterwards: PYTHONPATH=/tmp/skyrl-gpu/site:<this repository>/src
set -eu
parts=$1 place=/tmp/skyrl-gpu cache=${SKYRL_CACHE:-/var/cache/skyrl-stack}
mkdir -p $place/site $place/debs "$cache"
unpack() { cat "$parts/$1".tar.xz.* | xz -dT0 | tar -x --numeric-owner --xattrs --xattrs-include='*' -C "$2"; }
unpack site $place/site
unpack cache "$cache"
unpack rest $place
# Without bytecode every process compiles ten thousand modules, and a launch has eight, one after the other.
python3 -m compileall -q -j 0 $place/site >/dev/null || true # a few files are of other Pythons
torch=$(python3 -c 'import importlib.util as i; print(i.find_spec("torch").submodule_search_locations[0])')
[ -d "$torch/__pycache__" ] || python3 -m compileall -q -j 0 "$(dirname "$torch")" >/dev/null || true

# Podman beside the machine's own programs; of the libraries only those that it lacks.
for deb in $place/debs/*.deb; do dpkg -x "$deb" $place/debian; done
for program in usr/bin/podman usr/bin/conmon usr/bin/catatonit usr/bin/crun usr/sbin/runc; do
    [ -e "/$program" ] || cp "$place/debian/$program" "/$program"
done
for directory in usr/libexec/podman usr/lib/podman usr/share/containers; do
    mkdir -p "/$directory" && cp -r "$place/debian/$directory/." "/$directory/"
done
for _ in 1 2; do # the second time those that libraries lack
    for library in $(ldd /usr/bin/podman /usr/bin/conmon /usr/bin/crun /usr/sbin/runc | awk '/not found/{print $1}' | sort -u); do
        find $place/debian -name "$library*" -exec cp -P {} /usr/local/lib/ \;
    done
    ldconfig
done
