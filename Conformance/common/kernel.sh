# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the scripts that boot a Linux of their own (oracle, qemu-*): Debian's packages, a
# kernel that is built once for each configuration, and the files of its first file system.
#
# The script sets before: `me`, its name for messages; `failed`, its exit status where it could
# not do its work.

readonly package=linux-source-6.12
readonly tarball=/usr/src/$package.tar.xz
readonly cache=${SWIFT_IOMMU_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/swift-iommu}

say() { printf '%s: %s\n' "$me" "$*" >&2; }
die() { say "$1"; exit "${2:-$failed}"; }

number() { [[ $2 =~ ^[0-9]+$ ]] || die "$1 needs a number, not '$2'" 2; echo "$2"; }

# --- Packages -----------------------------------------------------------------------------------

install_packages() { # COMMAND-OR-FILE:PACKAGE…
  local missing=() pair
  for pair; do
    if [[ $pair == /* ]]; then
      [[ -e ${pair%%:*} ]] || missing+=("${pair#*:}")
    else
      command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    fi
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null ||
    die "these are missing, and there is no apt-get to install them: ${missing[*]}"
  [[ $(id -u) == 0 ]] ||
    die "these are missing; as root: apt-get install ${missing[*]} (the kernel's source is in Debian 12 and 13)"
  say "installing ${missing[*]}"
  local log=$cache/apt.log
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
    --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -5 "$log" >&2
    die "apt-get failed, see $log"
  fi
}

# --- The kernel ---------------------------------------------------------------------------------

# Sets home, kernel and pack. There is one of each version of the package and each configuration.
# Returns whether it is built.
find_kernel() { # NAME CONFIG
  local version configuration
  version=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null || echo unpacked)
  configuration=$(grep '^CONFIG_' "$2" | sha256sum | cut -c1-12)
  home=$cache/$1-$version-$configuration
  kernel=$home/bzImage pack=$home/gen_init_cpio
  [[ -e $kernel && -x $pack ]]
}

# As find_kernel, and builds what is not there.
prepare_kernel() { # NAME CONFIG
  mkdir -p "$cache"
  install_packages qemu-system-x86_64:qemu-system-x86 gcc:gcc readelf:binutils \
    "$tarball:$package" /usr/include/linux/limits.h:libc6-dev
  if find_kernel "$@"; then return; fi
  exec 8>"$home.lock"
  flock -n 8 || { say "another $1 is being built, waiting for it"; flock 8; }
  find_kernel "$@" || build_kernel "$2"
  exec 8>&-
}

build_kernel() { # CONFIG
  install_packages make:make xz:xz-utils flex:flex bison:bison bc:bc perl:perl \
    /usr/include/gelf.h:libelf-dev
  local tree=$home/tree out=$home/out log=$home/build.log line
  rm -rf "$home"
  mkdir -p "$tree" "$out"
  say "unpacking $package"
  tar -xf "$tarball" -C "$tree" --strip-components=1
  say 'configuring the kernel'
  {
    make -C "$tree" O="$out" tinyconfig
    cat "$1" >>"$out/.config"
    make -C "$tree" O="$out" olddefconfig
  } >"$log" 2>&1 || { tail -20 "$log" >&2; die "the configuration failed, see $log"; }
  while read -r line; do
    grep -qx "$line" "$out/.config" || die "this kernel does not take $line from $1"
  done < <(grep '^CONFIG_' "$1")
  say "building the kernel: about 10 minutes on 2 cores; see $log"
  make -C "$tree" O="$out" -j"$(nproc)" bzImage >>"$log" 2>&1 ||
    { tail -20 "$log" >&2; die "the build failed, see $log"; }
  cp "$out/usr/gen_init_cpio" "$pack"
  mv "$out/arch/x86/boot/bzImage" "$kernel"
  rm -rf "$tree" "$out"
}

# Sets init: the first process, a static program, compiled once.
prepare_init() { # DIRECTORY of its sources
  readonly init=$home/init-$(cat "$1"/*.[ch] | sha256sum | cut -c1-12)
  [[ -x $init ]] || {
    gcc -static -Os -Wall -Wextra -Werror -o "$init.new" "$1"/*.c >"$home/init.log" 2>&1 ||
      { cat "$home/init.log" >&2; die 'the first process of the machine does not compile'; }
    mv "$init.new" "$init"
  }
}

# --- The first file system ----------------------------------------------------------------------

# Names in the list must be free of blanks, so sources get our names. The script sets work, a
# directory of its own, before.
start_list() {
  list=$work/list entries=0
  rm -f "$work"/[0-9]*
  cat >"$list" <<'LIST'
dir /dev 755 0 0
nod /dev/console 600 0 0 c 5 1
dir /proc 755 0 0
dir /sys 755 0 0
dir /tmp 1777 0 0
LIST
  add_file "$init" /init
}

add_file() { # SOURCE PATH
  [[ -r $1 ]] || die "cannot read $1"
  [[ $2 == /* && $2 != *[[:space:]]* ]] || die "'$2' is no path of the machine: it must be absolute, without blanks" 2
  local mode=644 directory=${2%/*} at='' part
  [[ ! -x $1 ]] || mode=755
  while [[ -n $directory && $directory != "$at" ]]; do
    part=${directory#"$at"/}
    at=$at/${part%%/*}
    grep -qx "dir $at 755 0 0" "$list" || echo "dir $at 755 0 0" >>"$list"
  done
  ln -s "$(realpath "$1")" "$work/$entries"
  echo "file $2 $work/$entries $mode 0 0" >>"$list"
  entries=$((entries + 1))
}

# A program of this machine with the shared libraries that it needs, each where it is here.
add_program() { # PROGRAM
  local path one
  path=$(command -v "$1") || die "there is no $1"
  add_file "$path" "/bin/${path##*/}"
  while read -r one; do
    grep -q "^file $one " "$list" || add_file "$one" "$one"
  done < <(ldd "$path" | grep -oE '/[^ ]+' || true)
}

finish_list() { # IMAGE
  "$pack" "$list" >"$1" || die "gen_init_cpio could not make the machine's files"
}
