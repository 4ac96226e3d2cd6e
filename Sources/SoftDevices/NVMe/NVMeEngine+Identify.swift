// SPDX-License-Identifier: Apache-2.0
//
// Identify (NVM Express 1.4, 5.15): what the controller and its namespaces say of themselves.

import IOMMU
import VFIO

extension NVMeEngine {
  /// Which structure is asked for: CNS.
  private enum Structure: UInt32 {
    case namespace = 0x00
    case controller = 0x01
    case activeNamespaces = 0x02
    case namespaceIdentifiers = 0x03
  }

  func identify(_ command: NVMeCommand) throws(NVMeStatus) {
    let answer: NVMeBytes
    switch Structure(rawValue: command.dword(10) & 0xFF) {
    case .namespace: answer = describe(try store(command.namespace))
    case .controller: answer = describeController()
    case .activeNamespaces: answer = try listNamespaces(after: command.namespace)
    case .namespaceIdentifiers: answer = try nameNamespace(command.namespace)
    case nil: throw .invalidField
    }
    try self.answer(command, answer.bytes[...])
  }

  /// Sends what a command asked for.
  func answer(_ command: NVMeCommand, _ bytes: ArraySlice<UInt8>) throws(NVMeStatus) {
    guard !bytes.isEmpty else { return }
    try data.locate(command, count: bytes.count, pageShift: pageShift, isRead: true)
    data.fill(bytes)
    try data.send()
  }

  private static let size = 4096

  private func describeController() -> NVMeBytes {
    var answer = NVMeBytes(count: Self.size)
    answer.put(configuration.vendor, at: 0)
    answer.put(configuration.vendor, at: 2)
    answer.put(configuration.serial, at: 4, count: 20)
    answer.put(configuration.modelName, at: 24, count: 40)
    answer.put(Self.firmware, at: 64, count: 8)
    answer.put(configuration.transferLimit, at: 77)  // MDTS
    answer.put(UInt8(stores.contains(where: \.isShared) ? 1 << 1 : 0), at: 76)  // CMIC
    answer.put(configuration.controllerID, at: 78)
    answer.put(NVMeRegisters.version, at: 80)
    answer.put(UInt8(1), at: 111)  // an I/O controller
    answer.put(UInt16(1 << 1), at: 256)  // OACS: Format
    answer.put(UInt8(3), at: 258)  // aborts at once, less one
    answer.put(UInt8(NVMeEvents.limit - 1), at: 259)
    answer.put(UInt8(0b011), at: 260)  // one firmware slot, which is read only
    answer.put(UInt8(0b110), at: 261)  // LPA: effects log, offsets
    answer.put(UInt8(NVMeHealth.errorLimit - 1), at: 262)
    answer.put(NVMeHealth.warningTemperature, at: 266)
    answer.put(NVMeHealth.criticalTemperature, at: 268)
    let bytes = stores.reduce(UInt64(0)) { $0 &+ $1.blockCount * UInt64($1.blockSize) }
    answer.put(bytes, at: 280)  // TNVMCAP
    answer.put(UInt8(0x66), at: 512)  // entries of submission queues are 64 bytes
    answer.put(UInt8(0x44), at: 513)  // and of completion queues 16
    answer.put(UInt32(stores.count), at: 516)
    // ONCS: compare, dataset management, write zeroes, select, timestamp, verify.
    answer.put(UInt16(0b1101_1101), at: 520)
    answer.put(UInt8(0b111), at: 525)  // VWC: present, and flush takes all namespaces
    // SGLs of any alignment, bit buckets, and such as are longer than the data.
    answer.put(UInt32(1 | 1 << 16 | 1 << 18), at: 536)
    answer.put(zeroTerminated: qualifiedName, at: 768, count: 256)
    answer.put(UInt16(2500), at: 2048)  // power state 0: at most 25 W
    answer.put(UInt32(16), at: 2052)
    answer.put(UInt32(4), at: 2056)
    return answer
  }

  static let firmware = "1.0"

  /// As controllers are named that have no name of their own.
  private var qualifiedName: String {
    "nqn.2014-08.org.nvmexpress:uuid:" + Self.text(identifier(of: 0))
  }

  private func describe(_ store: BlockStore) -> NVMeBytes {
    var answer = NVMeBytes(count: Self.size)
    answer.put(store.blockCount, at: 0)
    answer.put(store.blockCount, at: 8)
    answer.put(store.usedBlocks, at: 16)
    answer.put(UInt8(1), at: 24)  // thin: NUSE says what is used
    answer.put(UInt8(store.isShared ? 1 : 0), at: 30)  // NMIC
    answer.put(UInt8(0b1001), at: 33)  // deallocated blocks are zero, written zeroes deallocate
    answer.put(store.blockCount * UInt64(store.blockSize), at: 48)  // NVMCAP
    answer.put(UInt8(store.isReadOnly ? 1 : 0), at: 99)  // NSATTR
    answer.put(UInt8(store.blockSize.trailingZeroBitCount), at: 130)  // LBAF0
    return answer
  }

  private func listNamespaces(after number: UInt32) throws(NVMeStatus) -> NVMeBytes {
    guard number < Self.everyNamespace - 1 else { throw .invalidNamespace }
    var answer = NVMeBytes(count: Self.size)
    let rest = stores.indices.lazy.map { UInt32($0 + 1) }.filter { $0 > number }
    for (index, found) in rest.prefix(Self.size / 4).enumerated() {
      answer.put(found, at: index * 4)
    }
    return answer
  }

  private func nameNamespace(_ number: UInt32) throws(NVMeStatus) -> NVMeBytes {
    _ = try store(number)
    var answer = NVMeBytes(count: Self.size)
    answer.put(UInt8(3), at: 0)  // a UUID
    answer.put(UInt8(16), at: 1)
    answer.put(identifier(of: number), at: 4)
    return answer
  }

  /// The same each time for a serial number and a namespace; 0 for the controller.
  private func identifier(of namespace: UInt32) -> [UInt8] {
    var hashes: (UInt64, UInt64) = (0xCBF2_9CE4_8422_2325, 0x8422_2325_CBF2_9CE4)
    let name = Array(configuration.serial.utf8) + Array(configuration.modelName.utf8)
    for byte in name + (0..<4).map({ UInt8(truncatingIfNeeded: namespace >> ($0 * 8)) }) {
      hashes.0 = (hashes.0 ^ UInt64(byte)) &* 0x100_0000_01B3
      hashes.1 = (hashes.1 ^ UInt64(byte) &+ hashes.0 >> 32) &* 0x100_0000_01B3
    }
    var bytes = NVMeBytes(count: 16)
    bytes.put(hashes.0, at: 0)
    bytes.put(hashes.1, at: 8)
    // Version 8, the variant of RFC 9562.
    bytes.put(bytes.bytes[6] & 0x0F | 0x80, at: 6)
    bytes.put(bytes.bytes[8] & 0x3F | 0x80, at: 8)
    return bytes.bytes
  }

  private static func text(_ identifier: [UInt8]) -> String {
    var text = ""
    for (index, byte) in identifier.enumerated() {
      if [4, 6, 8, 10].contains(index) { text += "-" }
      let digits = String(byte, radix: 16)
      text += digits.count == 1 ? "0" + digits : digits
    }
    return text
  }
}
