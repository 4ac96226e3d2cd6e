# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the scripts that can run their programs as a container would confine them
# (Tests/Programs/confined): only what runs is confined, not what is installed and built for it.
#
# The script sets before: `root`, the package's directory.

# What stands before `iommu run`: nothing, or with --confined the program that confines.
confined=()

confine() { # LOG
  # Beside an iommu that was built before there is this, too.
  if [[ -n ${iommu-} && -x ${iommu%/*}/confined ]]; then
    confined=("${iommu%/*}/confined" --)
    return
  fi
  (cd "$root" && swift build --product confined >"$1" 2>&1) || { tail -20 "$1" >&2; return 1; }
  confined=("$(cd "$root" && swift build --product confined --show-bin-path)/confined" --)
}
