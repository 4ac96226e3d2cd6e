// SPDX-License-Identifier: Apache-2.0
//
// From a command's data pointer to stretches of memory: PRP entries and lists, SGL descriptors and
// segments (NVM Express 1.4, 4.3 and 4.4). What a driver programs wrongly ends the command; what
// loops is cut short by the transfer's length and by the number of descriptors.

extension NVMeTransfer {
  /// SGL descriptors that one command may have.
  static let descriptorLimit = 4096

  /// Finds the data of a command.
  /// - Parameters:
  ///   - count: In bytes; at most `limit`.
  ///   - pageShift: Log2 of the controller's page size.
  ///   - isRead: Whether the data goes to the program.
  func locate(
    _ command: NVMeCommand, count: Int, pageShift: Int, isRead: Bool
  ) throws(NVMeStatus) {
    guard count <= limit else { throw .invalidField }
    clear()
    switch command.dataPointer {
    case 0: try locatePages(command.pointers, count: count, pageShift: pageShift)
    case 1, 2: try locateSegments(command.pointers, count: count, isRead: isRead)
    default: throw .invalidField
    }
  }

  // MARK: PRP

  private func locatePages(
    _ entries: (UInt64, UInt64), count: Int, pageShift: Int
  ) throws(NVMeStatus) {
    let page = 1 << pageShift
    let inPage = UInt64(page - 1)
    guard entries.0 & 3 == 0 else { throw .invalidPRPOffset }
    append(entries.0, min(count, page - Int(entries.0 & inPage)))
    guard length < count else { return }
    if count - length <= page {
      guard entries.1 & inPage == 0 else { throw .invalidPRPOffset }
      append(entries.1, count - length)
      return
    }
    guard entries.1 & 7 == 0 else { throw .invalidPRPOffset }
    var list = entries.1
    while length < count {
      let room = (page - Int(list & inPage)) / 8
      let needed = (count - length + page - 1) >> pageShift
      // Where it does not end here, the last entry says where it goes on.
      let continues = needed > room
      let entries = continues ? room - 1 : needed
      try loadList(list, count: continues ? room : needed)
      for index in 0..<entries {
        let entry = listWord(index)
        guard entry & inPage == 0 else { throw .invalidPRPOffset }
        append(entry, min(page, count - length))
      }
      guard continues else { return }
      list = listWord(room - 1)
      // From here on each list begins a page, so each holds some entries.
      guard list & inPage == 0 else { throw .invalidPRPOffset }
    }
  }

  // MARK: SGL

  private enum DescriptorType {
    static let dataBlock: UInt8 = 0x0
    static let bitBucket: UInt8 = 0x1
    static let segment: UInt8 = 0x2
    static let lastSegment: UInt8 = 0x3
  }

  private struct Descriptor {
    var address: UInt64
    var length: UInt32
    var type: UInt8

    /// - Throws: Where the type or subtype is none that there is.
    init(_ low: UInt64, _ high: UInt64) throws(NVMeStatus) {
      address = low
      length = UInt32(truncatingIfNeeded: high)
      let identifier = UInt8(truncatingIfNeeded: high >> 56)
      type = identifier >> 4
      guard identifier & 0xF == 0, type <= DescriptorType.lastSegment else {
        throw .invalidSGLType
      }
    }

    var leadsOn: Bool {
      type == DescriptorType.segment || type == DescriptorType.lastSegment
    }
  }

  private func locateSegments(
    _ pointer: (UInt64, UInt64), count: Int, isRead: Bool
  ) throws(NVMeStatus) {
    var current = try Descriptor(pointer.0, pointer.1)
    var seen = 0
    while current.leadsOn {
      let isLast = current.type == DescriptorType.lastSegment
      guard current.length > 0, current.length % 16 == 0 else { throw .invalidSGLSegment }
      let descriptors = Int(current.length / 16)
      seen += descriptors
      guard seen <= Self.descriptorLimit else { throw .invalidSGLCount }
      var next: Descriptor?
      var first = 0
      while first < descriptors {
        let batch = min(descriptors - first, Self.listLimit / 16)
        let (start, overflow) = current.address.addingReportingOverflow(UInt64(first) * 16)
        guard !overflow else { throw .dataTransferError }
        try loadList(start, count: batch * 2)
        for index in 0..<batch {
          let descriptor = try Descriptor(listWord(index * 2), listWord(index * 2 + 1))
          guard descriptor.leadsOn else {
            append(descriptor, count: count, isRead: isRead)
            continue
          }
          guard !isLast else { throw .invalidSGLSegment }
          guard first + index == descriptors - 1 else { throw .invalidSGLCount }
          next = descriptor
        }
        first += batch
      }
      guard !isLast else { break }
      guard let next else { throw .invalidSGLSegment }
      current = next
    }
    if !current.leadsOn { append(current, count: count, isRead: isRead) }
    guard length == count else { throw .invalidSGLLength }
  }

  /// A list may be longer than the data: what is too much is not used.
  private func append(_ descriptor: Descriptor, count: Int, isRead: Bool) {
    let isBucket = descriptor.type == DescriptorType.bitBucket
    // Of a write it has no data.
    guard isRead || !isBucket else { return }
    append(
      descriptor.address, Int(min(UInt64(descriptor.length), UInt64(count - length))),
      isDiscarded: isBucket)
  }
}
