// SPDX-License-Identifier: Apache-2.0
//
// The MSI capability (PCI Express Base Specification, 7.7.1) as vfio-pci shows it: the user's enable
// bit, number of messages, address and data are a copy of its own; of those the first two go to the
// function too, once SET_IRQS has set MSI up. Mask and pending bits are the function's. Facts: Linux
// 6.12, vfio_pci_config.c, `vfio_msi_config_write`.

/// Bits of message control.
enum MessageControl {
  static let enable: UInt16 = 0x0001
  /// How many messages there may be, and how many are in use: logarithms to the base 2.
  static let capableShift: UInt16 = 1
  static let usedShift: UInt16 = 4
  static let used: UInt16 = 0x0070
  static let has64Bits: UInt16 = 0x0080
  static let isMaskable: UInt16 = 0x0100

  static let size = 0x18
}

/// What the function itself has of MSI, beside what its user sees.
struct MSIControl: Hashable, Sendable {
  /// Whether SET_IRQS has set MSI up. Linux: `irq_type`.
  var isSetUp = false
  /// The most messages that the user may write: as many as SET_IRQS set up last, rounded up; a
  /// logarithm. Linux: `msi_qmax`.
  var limit: UInt16 = 0
  var isEnabled = false
  /// Messages in use, a logarithm.
  var used: UInt16 = 0
}

extension PCIConfigSpace.Storage {
  mutating func writeMSI(_ layout: MSILayout, at offset: Int) {
    set16(
      layout.log2 << MessageControl.capableShift | MessageControl.has64Bits
        | (layout.isMaskable ? MessageControl.isMaskable : 0), at: offset + 2)
    setWritable16(MessageControl.enable | MessageControl.used, at: offset + 2)
    setWritable32(0xFFFF_FFFC, at: offset + 4)
    setWritable32(.max, at: offset + 8)
    setWritable16(.max, at: offset + 0x0C)
    guard layout.isMaskable else { return }
    let bits = layout.vectors == 32 ? UInt32.max : 1 << UInt32(layout.vectors) - 1
    setWritable32(bits, at: offset + MSILayout.mask)
  }

  /// The user wrote message control, at `offset`.
  mutating func followMessageControl(at offset: Int) {
    var control = value16(at: offset)
    if !msi.isSetUp { control &= ~MessageControl.enable }
    if (control & MessageControl.used) >> MessageControl.usedShift > msi.limit {
      control = control & ~MessageControl.used | msi.limit << MessageControl.usedShift
    }
    set16(control, at: offset)
    msi.isEnabled = control & MessageControl.enable != 0
    msi.used = (control & MessageControl.used) >> MessageControl.usedShift
  }
}

extension PCIConfigSpace {
  /// The state of MSI, and which messages are masked.
  var messages: (control: MSIControl, masks: UInt32) {
    state.withLock { state in
      let masks =
        hasMessageMasks ? state.value32(at: layout.msi + MSILayout.mask) : 0
      return (state.msi, masks)
    }
  }

  private var hasMessageMasks: Bool {
    layout.msi != 0 && initial.value16(at: layout.msi + 2) & MessageControl.isMaskable != 0
  }

  /// MSI is set up for 2 to the `log2` messages; nil switches it off.
  func setMessages(log2: UInt16?) {
    state.withLock { state in
      guard let log2 else {
        state.msi = MSIControl(limit: state.msi.limit)
        return
      }
      state.msi = MSIControl(isSetUp: true, limit: log2, isEnabled: true, used: log2)
    }
  }

  /// Says which messages are masked and which are pending.
  func setMessages(masks: UInt32? = nil, pending: UInt32? = nil) {
    guard hasMessageMasks else { return }
    state.withLock { state in
      if let masks { state.set32(masks, at: layout.msi + MSILayout.mask) }
      if let pending { state.set32(pending, at: layout.msi + MSILayout.pending) }
    }
  }
}
