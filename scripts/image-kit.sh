# Sourced by the scripts that build images from Debian packages: how layers are made, and how a layout is built once.
source "$(dirname "${BASH_SOURCE[0]}")/cache.sh"
clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Installs PACKAGE... into ROOT as the machine's own apt would, with maintainer scripts run inside ROOT.
install_into() { # ROOT PACKAGE...
  local root=$1
  shift
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet \
    -o Dir::State::status="$root/var/lib/dpkg/status" -o Dir::Cache::archives="$MICA_CACHE/debs" \
    -o APT::Keep-Downloaded-Packages=true -o DPkg::Options::="--root=$root" \
    -o DPkg::Options::=--force-unsafe-io "$@" </dev/null
  forget_traces "$root"
}

# Unpacks a Debian into ROOT; OPTION... are debootstrap's.
debian_into() { # ROOT OPTION...
  local root=$1
  shift
  debootstrap "$@" --cache-dir="$MICA_CACHE/debs" --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
    bookworm "$root" "$(machine_mirror)" </dev/null
  forget_traces "$root"
}

forget_traces() {
  rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old "$1"/var/cache/ldconfig \
    "$1"/var/log/* "$1"/var/lib/dpkg/*-old "$1"/tmp/*
}

# What the bundle holds beyond its last layer becomes a new layer of image TAG.
layer() { # BUNDLE TAG COMMENT
  umoci repack --refresh-bundle --image "$layout:$2" --history.comment "$3" "$1"
}

# The sourcing script, called with `--build WORK`, makes the layout $WORK/layout. `build_once NAME RECIPE WHAT` calls
# it so, unless $MICA_CACHE/NAME/RECIPE/layout is there, and prints that path. The build has a mount namespace of its
# own: what maintainer scripts and debootstrap mount ends with it.
build_once() { # NAME RECIPE WHAT
  local shelf="$MICA_CACHE/$1" folder="$MICA_CACHE/$1/$2"
  if [ ! -e "$folder/layout/index.json" ]; then
    lock "$1"
    [ -e "$folder/layout/index.json" ] || build_now "$shelf" "$folder" "$3"
  fi
  printf '%s\n' "$folder/layout"
}

build_now() { # SHELF FOLDER WHAT
  say "building $3"
  mkdir -p "$1" "$MICA_CACHE/debs/partial"
  rm -rf "$1"/.new.*
  work=$(mktemp -d "$1/.new.XXXXXX")
  child=
  # The build runs as a child so that a signal ends it too, with everything in its namespaces.
  trap '[ -z "$child" ] || { kill "$child" 2>/dev/null || true; wait "$child" || true; }; rm -rf "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
    "$0" --build "$work" >"$1.log" 2>&1 </dev/null &
  child=$!
  wait "$child" || { child=; tail -n 40 "$1.log" >&2; die "building $3 failed"; }
  child=
  mkdir -p "$2"
  mv "$work/layout" "$2/layout"
  find "$1" -mindepth 1 -maxdepth 1 -type d -mtime +7 ! -path "$2" -exec rm -rf {} +
}
