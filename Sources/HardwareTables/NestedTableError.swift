// SPDX-License-Identifier: Apache-2.0
//
// What IOMMU_HWPT_ALLOC and the attach that follows answer to a table that a user owns:
// include/uapi/linux/iommufd.h, the data types of IOMMU_HWPT_ALLOC.

/// A user's table that is refused, by the errno that Linux gives.
public enum NestedTableError: Int32, Error, Hashable, Sendable {
  /// EIO.
  case ioError = 5
  /// EINVAL.
  case invalid = 22
  /// EOPNOTSUPP.
  case notSupported = 95
}
