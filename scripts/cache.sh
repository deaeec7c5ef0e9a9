# Sourced by the other scripts: where everything that outlives a run is kept, and how it is written.
#
#   $MICA_CACHE/target     cargo's output
#   $MICA_CACHE/rocksdb    librocksdb.a, one folder a version
#   $MICA_CACHE/engines    container engines, unpacked from Debian packages, never installed
#   $MICA_CACHE/images     test images as OCI layouts, one folder a recipe
#   $MICA_CACHE/apt        a private apt configuration and its package lists
#   $MICA_CACHE/debs       downloaded packages
set -euo pipefail
export LC_ALL=C.UTF-8
export MICA_CACHE="${MICA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mica}"
mkdir -p "$MICA_CACHE"

say() { printf '%s\n' "$*" >&2; }
die() {
  say "$(basename "$0"): $*"
  exit 1
}

# Two runs at once wait for each other: the lock named $1 is held until this shell ends.
lock() {
  exec {lock_fd}>"$MICA_CACHE/$1.lock"
  if ! flock --nonblock "$lock_fd"; then
    say "waiting for another run of $(basename "$0")"
    flock "$lock_fd"
  fi
}

# The release of Debian that this machine runs, and the mirror that its own sources name for it.
machine_suite() {
  # shellcheck source=/dev/null
  (. /etc/os-release && printf '%s\n' "$VERSION_CODENAME")
}
machine_mirror() {
  apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite="$(machine_suite)" '$1 == suite && $2 == "main" { print $3; exit }'
}

# A private apt that reads and writes nothing of the machine's but its mirror and its network settings:
# `private_apt NAME SUITE` makes it below the cache and prints the path to give as APT_CONFIG.
private_apt() {
  local name=$1 suite=$2 base="$MICA_CACHE/apt/$1" mirror
  mirror=$(machine_mirror)
  [ -n "$mirror" ] || die "the machine's package sources name no mirror of $(machine_suite)"
  mkdir -p "$base"/{state/lists/partial,cache/archives/partial,parts}
  [ -e "$base/status" ] || : >"$base/status"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
    "$mirror" "$suite" >"$base/sources.list"
  {
    apt-config dump | grep -E '^Acquire::(http|https|Retries|ForceIPv)' || true
    cat <<CONF
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$base/parts";
Dir::Etc::sourcelist "$base/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$base/state";
Dir::State::status "$base/status";
Dir::Cache "$base/cache";
Dir::Log "$base";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
CONF
  } >"$base/apt.conf"
  printf '%s\n' "$base/apt.conf"
}
