// SPDX-License-Identifier: Apache-2.0
//
// What every driver of a VFIO device does first: find the device and its node in sysfs, bind it to
// an iommufd, attach it to an address space. Uses the kernel's interface only.

#ifndef VFIO_DEVICE_H
#define VFIO_DEVICE_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "iommufd_abi.h"
#include "vfio_abi.h"

// Reads a number of a PCI device in sysfs, such as `vendor` or `class`.
static inline bool read_id(const char *bdf, const char *file, unsigned *id) {
  char path[320];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", bdf, file);
  FILE *stream = fopen(path, "re");
  if (!stream) return false;
  bool read = fscanf(stream, "%x", id) == 1;
  fclose(stream);
  return read;
}

// Finds the VFIO node of a PCI device; false where vfio-pci has not got it.
static inline bool find_node(const char *bdf, char *node, size_t size) {
  char path[320];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", bdf);
  DIR *directory = opendir(path);
  if (!directory) return false;
  bool found = false;
  for (struct dirent *entry; !found && (entry = readdir(directory));) {
    if (strncmp(entry->d_name, "vfio", 4)) continue;
    snprintf(node, size, "/dev/vfio/devices/%.64s", entry->d_name);
    found = true;
  }
  closedir(directory);
  return found;
}

// Finds the device at `wanted`, or else the first one after address `after` (NULL: of all), that
// `is_one` takes and that vfio-pci drives. Writes its address and its node.
static inline bool find_device(bool (*is_one)(const char *bdf), const char *wanted,
                               const char *after, char bdf[32], char node[128]) {
  struct dirent **entries;
  const int count = scandir("/sys/bus/pci/devices", &entries, NULL, alphasort);
  bool found = false;
  for (int i = 0; i < count; i++) {
    const char *name = entries[i]->d_name;
    if (!found && name[0] != '.' && (!wanted || !strcmp(name, wanted)) &&
        (!after || strcmp(name, after) > 0) && is_one(name) && find_node(name, node, 128)) {
      snprintf(bdf, 32, "%.31s", name);
      found = true;
    }
    free(entries[i]);
  }
  if (count >= 0) free(entries);
  return found;
}

// Connects the device to the context: after this it may be used, and its DMA reaches nothing.
// `id` is what the context calls it.
static inline int vfio_bind(int device, int iommu, uint32_t *id) {
  struct vfio_device_bind_iommufd bind = {
      .argsz = sizeof bind - sizeof bind.token_uuid_ptr, .iommufd = iommu};
  if (ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind)) return -1;
  *id = bind.out_devid;
  return 0;
}

// Attaches the device to an address space or page table: its DMA goes there from here on.
static inline int vfio_attach(int device, uint32_t page_table) {
  struct vfio_device_attach_iommufd_pt attach = {
      .argsz = sizeof attach - sizeof attach.pasid, .pt_id = page_table};
  return ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

// Takes it out again: its DMA reaches nothing.
static inline int vfio_detach(int device) {
  struct vfio_device_detach_iommufd_pt detach = {.argsz = sizeof detach - sizeof detach.pasid};
  return ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach);
}

#endif
