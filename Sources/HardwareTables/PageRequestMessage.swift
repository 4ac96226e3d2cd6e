// SPDX-License-Identifier: Apache-2.0
//
// A device's page request (PCI Express Base, 10.4.1), which all four families tell software with
// the same nine fields. What each makes of them is in PageRequestMessage+Records.swift.

/// One page that a device asks for, as its message says it.
public struct PageRequestMessage: Hashable, Sendable {
  /// Who asks. The requester ID, 16 bits, of VT-d and AMD; the StreamID, 32 bits, of SMMUv3; the
  /// `device_id`, 24 bits, of RISC-V. What is wider than a record's field is cut off there.
  public var source: UInt32
  /// 20 bits; nil where the message had none.
  public var pasid: UInt32?
  /// "Privileged Mode Requested"; only with a PASID.
  public var isPrivileged: Bool
  /// "Execute Requested"; only with a PASID.
  public var wantsExecute: Bool
  public var wantsRead: Bool
  public var wantsWrite: Bool
  /// The last of its group, which is answered as one.
  public var isLast: Bool
  /// Page Request Group Index, 9 bits.
  public var group: UInt16
  /// In bytes, a multiple of 4 KiB.
  public var address: UInt64

  public init(
    source: UInt32, pasid: UInt32? = nil, isPrivileged: Bool = false,
    wantsExecute: Bool = false, wantsRead: Bool, wantsWrite: Bool, isLast: Bool,
    group: UInt16, address: UInt64
  ) {
    self.source = source
    self.pasid = pasid
    self.isPrivileged = isPrivileged
    self.wantsExecute = wantsExecute
    self.wantsRead = wantsRead
    self.wantsWrite = wantsWrite
    self.isLast = isLast
    self.group = group
    self.address = address
  }

  /// A Stop Marker: the device will ask nothing more for this PASID. No answer is due (PCIe
  /// 10.4.1.2; IHI 0070, 8.2; RISC-V IOMMU, 3.3).
  public var isStopMarker: Bool { pasid != nil && isLast && !wantsRead && !wantsWrite }
}
