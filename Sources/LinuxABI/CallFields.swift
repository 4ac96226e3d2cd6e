// SPDX-License-Identifier: Apache-2.0
//
// How a call reads in a trace: its command's name and the fields of its structure.

import IOMMU

/// A command in words.
public struct CallFields: Sendable {
  /// `IOMMU_IOAS_MAP`.
  public var name: String
  /// In the structure's order; values as a person writes them.
  public var fields: [(name: String, value: String)]

  public init(name: String, fields: [(name: String, value: String)] = []) {
    self.name = name
    self.fields = fields
  }
}

/// An open file that can put its calls into words. Asked after the call, while its caller still
/// waits, and only where somebody traces.
public protocol DescribesCalls: OpenFile {
  func describe(_ command: UInt32, argument: UInt64, by caller: any Caller) -> CallFields
}
