// SPDX-License-Identifier: Apache-2.0
//
// How the parts of a controller's state are written and read back.

import IOMMU
import VFIO

extension NVMeRegisters {
  func save(to bytes: inout DeviceStateWriter) {
    for word in [configuration.rawValue, status.rawValue, interruptMask, adminQueueSizes] {
      bytes.append(word)
    }
    bytes.append(adminSubmission)
    bytes.append(adminCompletion)
    bytes.append(requests.rawValue)
  }

  init(from reader: inout DeviceStateReader, queueEntries: Int) throws(IOMMUError) {
    self.init(queueEntries: queueEntries)
    configuration.rawValue = try reader.read()
    status = Status(rawValue: try reader.read())
    interruptMask = try reader.read()
    adminQueueSizes = try reader.read()
    adminSubmission = try reader.read()
    adminCompletion = try reader.read()
    requests = Requests(rawValue: try reader.read())
    guard configuration.rawValue & ~0x00FF_FFF1 == 0, status.rawValue <= 0x1F,
      adminQueueSizes & ~0x0FFF_0FFF == 0, requests.rawValue <= 0xF,
      (adminSubmission | adminCompletion) & 0xFFF == 0
    else { throw DeviceStateReader.invalid("a register has bits that it cannot have") }
  }
}

extension NVMeFeatures {
  func save(to bytes: inout DeviceStateWriter) {
    for word in [
      arbitration, errorRecovery, interruptCoalescing, writeAtomicity, eventConfiguration,
    ] {
      bytes.append(word)
    }
    bytes.append(writeCache)
    for flag in coalescingOff { bytes.append(flag) }
    bytes.append(overTemperature)
    bytes.append(underTemperature)
    bytes.append(time)
    bytes.append(timestamp.isSet)
  }

  init(from reader: inout DeviceStateReader, vectors: Int) throws(IOMMUError) {
    self.init(vectors: vectors)
    arbitration = try reader.read()
    errorRecovery = try reader.read()
    interruptCoalescing = try reader.read()
    writeAtomicity = try reader.read()
    eventConfiguration = try reader.read()
    writeCache = try reader.readFlag()
    for index in coalescingOff.indices { coalescingOff[index] = try reader.readFlag() }
    overTemperature = try reader.read()
    underTemperature = try reader.read()
    let time = try reader.read(UInt64.self)
    guard time >> 48 == 0 else {
      throw DeviceStateReader.invalid("a time of more than 48 bits")
    }
    timestamp = (time, try reader.readFlag())
  }
}

extension NVMeEvents {
  func save(to bytes: inout DeviceStateWriter) {
    for list in [waiting, cancelled] {
      bytes.append(UInt8(clamping: list.count))
      for identifier in list { bytes.append(identifier) }
    }
    bytes.append(UInt8(clamping: pending.count))
    for event in pending { bytes.append(event.result) }
    bytes.append(UInt8(told.reduce(0) { $0 | 1 << $1.rawValue }))
  }

  init(from reader: inout DeviceStateReader) throws(IOMMUError) {
    self.init()
    waiting = try Self.list(&reader)
    cancelled = try Self.list(&reader)
    for _ in 0..<(try reader.read(UInt8.self)) {
      let result = try reader.read(UInt32.self)
      guard let event = Event.all.first(where: { $0.result == result }) else {
        throw DeviceStateReader.invalid("there is no such event")
      }
      add(event)
    }
    let told = try reader.read(UInt8.self)
    guard told <= 3 else { throw DeviceStateReader.invalid("there is no such kind of event") }
    self.told = Set([Event.Kind.error, .health].filter { told & 1 << $0.rawValue != 0 })
  }

  private static func list(_ reader: inout DeviceStateReader) throws(IOMMUError) -> [UInt16] {
    let count = try reader.read(UInt8.self)
    guard count <= limit else { throw DeviceStateReader.invalid("too many wait for events") }
    var list: [UInt16] = []
    for _ in 0..<count { list.append(try reader.read()) }
    return list
  }
}

extension NVMeHealth {
  func save(to bytes: inout DeviceStateWriter) {
    for count in [
      readBytes, writtenBytes, readCommands, writeCommands, mediaErrors, errorCount,
    ] {
      bytes.append(count)
    }
    bytes.append(UInt8(errors.count))
    for entry in errors {
      bytes.append(entry.number)
      bytes.append(entry.queue)
      bytes.append(entry.command)
      bytes.append(entry.status.field)
      bytes.append(entry.block)
      bytes.append(entry.namespace)
    }
  }

  init(from reader: inout DeviceStateReader) throws(IOMMUError) {
    self.init()
    readBytes = try reader.read()
    writtenBytes = try reader.read()
    readCommands = try reader.read()
    writeCommands = try reader.read()
    mediaErrors = try reader.read()
    errorCount = try reader.read()
    let count = try reader.read(UInt8.self)
    guard count <= Self.errorLimit else { throw DeviceStateReader.invalid("too many errors") }
    for _ in 0..<count {
      errors.append(
        ErrorEntry(
          number: try reader.read(), queue: try reader.read(), command: try reader.read(),
          status: NVMeStatus(field: try reader.read()), block: try reader.read(),
          namespace: try reader.read()))
    }
  }
}
