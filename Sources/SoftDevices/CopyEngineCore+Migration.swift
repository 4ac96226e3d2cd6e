// SPDX-License-Identifier: Apache-2.0
//
// How the copy engine's state moves to another engine: stopped between two descriptors, saved,
// loaded. A descriptor that waits for a page is put back and done again.

import IOMMU
import VFIO

extension CopyEngineCore: DeviceMigration {
  var stateVersion: UInt32 { 2 }
  var stateLimit: Int { 4096 }

  func quiesce() {
    monitor.change { state in
      state.isQuiesced = true
      // Ends a wait for a page, and a long transfer at its next piece.
      waits.cancel()
    }
    monitor.wait { state in state.channel.isBusy ? nil as Void? : () }
  }

  func resume() {
    change { state in
      state.isQuiesced = false
      defer { state.owesInterrupt = false }
      return state.owesInterrupt ? .interrupt : []
    }
  }

  func saveState() -> [UInt8] {
    monitor.withLock { state in
      var bytes = DeviceStateWriter()
      let configuration = state.configuration
      bytes.append(configuration.version)
      bytes.append(configuration.transferCapacity)
      bytes.append(configuration.canFill)
      bytes.append(configuration.takesPASIDs)
      bytes.append(configuration.localMemory)
      bytes.append(state.generalControl)
      bytes.append(state.interruptControl)
      bytes.append(state.interruptDelay)
      bytes.append(state.hints.prefetchLimit)
      bytes.append(state.hints.cacheHint)
      bytes.append(state.hints.ringSize)
      bytes.append(state.hints.latencyChoice)
      bytes.append(state.hints.latencyActive)
      bytes.append(state.hints.latencyIdle)
      bytes.append(state.owesInterrupt)
      state.channel.save(to: &bytes)
      return bytes.bytes
    }
  }

  func loadState(_ bytes: [UInt8]) throws(IOMMUError) {
    var reader = DeviceStateReader(bytes)
    let configuration = CopyEngine.Configuration(
      version: try reader.read(), transferCapacity: try reader.read(),
      canFill: try reader.readFlag(), localMemory: 0, takesPASIDs: try reader.readFlag())
    var wanted = configuration
    wanted.localMemory = try reader.read()
    let generalControl = try reader.read(UInt8.self)
    let interruptControl = try reader.read(UInt8.self)
    let interruptDelay = try reader.read(UInt16.self)
    let hints = CopyHints(
      prefetchLimit: try reader.read(), cacheHint: try reader.read(),
      ringSize: try reader.read(),
      latencyChoice: try reader.read(), latencyActive: try reader.read(),
      latencyIdle: try reader.read())
    let owesInterrupt = try reader.readFlag()
    let channel = try CopyChannel(from: &reader)
    try reader.finish()
    let mine = monitor.withLock { $0.configuration }
    guard wanted == mine else {
      throw IOMMUError(
        .invalidArgument,
        "the state is of another copy engine (version \(hex(wanted.version)), transfers of "
          + "2^\(wanted.transferCapacity) bytes) than this one (version \(hex(mine.version)), "
          + "2^\(mine.transferCapacity)); give both the same keys in the machine file")
    }
    let known =
      CopyEngineState.InterruptControl.master | CopyEngineState.InterruptControl.vectorControl
    guard interruptControl & ~known == 0, generalControl & ~0x01 == 0 else {
      throw DeviceStateReader.invalid("a register has bits that it cannot have")
    }
    monitor.change { state in
      state.generalControl = generalControl
      state.interruptControl = interruptControl
      state.interruptDelay = interruptDelay
      state.hints = hints
      state.owesInterrupt = owesInterrupt
      state.channel.become(channel)
    }
  }
}
