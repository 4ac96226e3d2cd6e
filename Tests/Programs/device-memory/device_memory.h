// SPDX-License-Identifier: Apache-2.0
//
// What the parts of this program share.

#ifndef DEVICE_MEMORY_H
#define DEVICE_MEMORY_H

#include <sys/mman.h>

#include "copy_engine.h"
#include "../common/check.h"

/// The other way to the device: its group. Closes what it opens, but for one mapping.
void check_group_way(struct engine *engine, const struct vfio_region_info *region);

#endif
