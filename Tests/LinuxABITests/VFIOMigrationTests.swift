// SPDX-License-Identifier: Apache-2.0
//
// J1: migration, version 2, by its calls: a ring of copies goes on in another engine with nothing
// lost or done twice, stopped at once or copied before; and every wrong step and stream.

import CLinuxABI
import Foundation
import IOMMU
import SoftDevices
import SoftwareIOMMU
import TestSupport
import Testing
import VFIO

@testable import LinuxABI

@Suite(.timeLimit(.minutes(10))) struct VFIOMigrationTests {
  private static let ring: UInt64 = 0x10_0000
  private static let count: UInt64 = 64

  private func rig(_ configuration: CopyEngine.Configuration = .init()) throws -> EngineRig {
    let rig = try EngineRig(configuration: configuration)
    try rig.connect()
    #expect(rig.map(Self.ring, to: Self.ring, length: 0x40_0000) == 0)
    rig.write(0x03, UInt8(1))
    return rig
  }

  /// Each descriptor copies one word from 2 MiB up to 3 MiB up.
  private func makeRing(_ rig: EngineRig) {
    for index in 0..<Self.count {
      rig.caller.put(0x1111 * (index + 1), at: 0x20_0000 + index * 8)
      rig.descriptor(
        at: Self.ring + index * 64, size: 8, source: 0x20_0000 + index * 8,
        destination: 0x30_0000 + index * 8, next: Self.ring + (index + 1) % Self.count * 64)
    }
  }

  /// The words that were copied, by their numbers.
  private func copied(_ rig: EngineRig) -> [UInt64] {
    (0..<Self.count).filter {
      rig.caller.get(UInt64.self, at: 0x30_0000 + $0 * 8) == 0x1111 * ($0 + 1)
    }
  }

  @Test(
    "J1: MIGRATION says stop-copy, peerless and pre-copy; PROBE, GET and SET as Linux has them")
  func probing() throws {
    let rig = try rig()
    var flags = vfio_device_feature_migration()
    let number = VFIO_DEVICE_FEATURE_MIGRATION
    #expect(rig.feature(number, EngineRig.get, &flags) == 0)
    #expect(flags.flags == 7)
    #expect(rig.feature(number, EngineRig.probe) == 0)
    #expect(rig.feature(number, EngineRig.probe | EngineRig.get) == 0)
    #expect(rig.feature(number, EngineRig.probe | EngineRig.set) == -EINVAL)
    #expect(rig.feature(number, EngineRig.probe | EngineRig.get | EngineRig.set) == -EINVAL)
    #expect(rig.feature(number, EngineRig.set) == -EINVAL)
    #expect(rig.feature(number, 0) == -EINVAL)
    #expect(rig.feature(number, EngineRig.get, argsz: 15) == -EINVAL)
    #expect(rig.feature(number, EngineRig.get, argsz: 7) == -EINVAL)
    #expect(rig.feature(number, EngineRig.get | 0x80000) == -EINVAL)
    let state = VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
    #expect(rig.feature(state, EngineRig.probe | EngineRig.get | EngineRig.set) == 0)
    #expect(rig.feature(state, EngineRig.get | EngineRig.set, argsz: 16) == -EINVAL)
    #expect(rig.feature(state, EngineRig.set, argsz: 15) == -EINVAL)
    #expect(
      rig.feature(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, EngineRig.probe | EngineRig.get) == 0)
    #expect(
      rig.feature(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, EngineRig.probe | EngineRig.set) == -EINVAL
    )
    #expect(rig.feature(VFIO_DEVICE_FEATURE_BUS_MASTER, EngineRig.probe) == -ENOTTY)
    #expect(rig.feature(VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, EngineRig.probe) == -ENOTTY)
    #expect(rig.feature(0xFFFF, EngineRig.probe) == -ENOTTY)
  }

  @Test("J1: stop-copy: the ring stands, its state is read to the end, and goes on elsewhere")
  func stopCopy() throws {
    let (old, new) = (try rig(), try rig())
    makeRing(old)
    old.start(Self.ring, count: 20)
    old.wait()
    let (result, data) = old.migrate(to: VFIO_DEVICE_STATE_STOP_COPY)
    #expect(result == 0)
    #expect(old.migrationState == Int32(VFIO_DEVICE_STATE_STOP_COPY))
    old.write(0x86, UInt16(50))
    #expect(copied(old).count == 20, "it stands")
    #expect(old.caller.poll(data)?.contains(.readable) == true)
    let stream = old.drain(data)
    #expect(stream.result == 0)
    #expect(old.caller.read(data, 0x4000, count: 8) == 0, "the end stays the end")
    #expect(old.caller.poll(data)?.contains(.readable) == true)
    var size = vfio_device_feature_mig_data_size()
    #expect(old.feature(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, EngineRig.get, &size) == 0)
    #expect(size.stop_copy_length == UInt64(stream.bytes.count))

    makeRing(new)
    let incoming = new.migrate(to: VFIO_DEVICE_STATE_RESUMING)
    #expect(incoming.result == 0)
    #expect(new.fill(incoming.data, stream.bytes, piece: 7) == 0)
    #expect(new.migrate(to: VFIO_DEVICE_STATE_RUNNING).result == 0)
    new.wait()
    #expect(copied(new) == Array(20..<50), "nothing is lost and nothing done twice")
    new.write(0x86, UInt16(64))
    new.wait()
    #expect(copied(new) == Array(20..<64))
    #expect(new.caller.write(incoming.data, 0x4000, count: 1) == -Int(ENODEV))
    // The source can go on too, where the move is given up.
    #expect(old.migrate(to: VFIO_DEVICE_STATE_RUNNING).result == 0)
    old.wait()
    #expect(copied(old).count == 50)
    #expect(old.caller.read(data, 0x4000, count: 8) == -Int(ENODEV), "the session is over")
  }

  @Test("J1: pre-copy: the ring runs while its state is read; what changes comes after it")
  func preCopy() throws {
    let (old, new) = (try rig(), try rig())
    makeRing(old)
    old.start(Self.ring, count: 10)
    old.wait()
    let (result, data) = old.migrate(to: VFIO_DEVICE_STATE_PRE_COPY)
    #expect(result == 0)
    let first = old.preCopyInfo(data)
    #expect(first.result == 0)
    #expect(first.initial > 0 && first.dirty == 0)
    #expect(old.caller.poll(data)?.contains(.readable) == true)
    var stream = old.drain(data)
    #expect(stream.bytes.count == Int(first.initial))
    #expect(stream.result == -42, "ENOMSG: nothing new as yet")
    #expect(old.caller.poll(data)?.contains(.readable) == false)
    #expect(old.preCopyInfo(data) == (0, 0, 0))
    old.write(0x86, UInt16(30))
    old.wait()
    #expect(copied(old).count == 30, "it runs")
    let second = old.preCopyInfo(data)
    #expect(second.initial == 0 && second.dirty > 0)
    #expect(old.caller.poll(data)?.contains(.readable) == true)
    stream.bytes += old.drain(data).bytes
    old.write(0x86, UInt16(40))
    old.wait()
    let (stop, none) = old.migrate(to: VFIO_DEVICE_STATE_STOP_COPY)
    #expect(stop == 0)
    #expect(none == -1, "the session is the same one")
    #expect(old.preCopyInfo(data).result == -EINVAL)
    let rest = old.drain(data)
    #expect(rest.result == 0)
    stream.bytes += rest.bytes

    makeRing(new)
    let incoming = new.migrate(to: VFIO_DEVICE_STATE_RESUMING)
    #expect(new.fill(incoming.data, stream.bytes, piece: 4096) == 0)
    #expect(new.migrate(to: VFIO_DEVICE_STATE_STOP).result == 0)
    #expect(new.migrate(to: VFIO_DEVICE_STATE_RUNNING).result == 0)
    new.write(0x86, UInt16(64))
    new.wait()
    #expect(copied(new) == Array(40..<64))
  }

  @Test("J1: a vector that was pending fires in the new device once it is armed")
  func pendingInterrupt() throws {
    let (old, new) = (try rig(), try rig())
    makeRing(old)
    old.caller.put(UInt32(1), at: Self.ring + 4)
    // On, and then without an event: masked.
    #expect(old.arm(CountingSignal()) == 0)
    #expect(
      old.setIRQs(
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index: 2, count: 1,
        data: [-1]) == 0)
    old.start(Self.ring, count: 1)
    old.wait()
    let (_, data) = old.migrate(to: VFIO_DEVICE_STATE_STOP_COPY)
    let stream = old.drain(data).bytes
    makeRing(new)
    let incoming = new.migrate(to: VFIO_DEVICE_STATE_RESUMING)
    #expect(new.fill(incoming.data, stream) == 0)
    #expect(new.migrate(to: VFIO_DEVICE_STATE_RUNNING).result == 0)
    let signal = CountingSignal()
    #expect(new.arm(signal) == 0)
    #expect(signal.count == 1)
  }

  @Test("J1: the memory behind a BAR moves too, decoded or not")
  func memory() throws {
    let configuration = CopyEngine.Configuration(localMemory: 256 << 10)
    let (old, new) = (try rig(configuration), try rig(configuration))
    let bar = EngineRig.regionBase | 2 << 40
    for offset in stride(from: UInt64(0), to: 256 << 10, by: 4096) {
      old.pwrite(bar + offset, offset &* 3 + 1)
    }
    let (_, data) = old.migrate(to: VFIO_DEVICE_STATE_STOP_COPY)
    old.config(4, UInt16(0))
    let stream = old.drain(data, piece: 5000).bytes
    let incoming = new.migrate(to: VFIO_DEVICE_STATE_RESUMING)
    #expect(new.fill(incoming.data, stream, piece: 3333) == 0)
    #expect(new.migrate(to: VFIO_DEVICE_STATE_STOP).result == 0)
    for offset in stride(from: UInt64(0), to: 256 << 10, by: 4096) {
      #expect(new.pread(bar + offset) == offset &* 3 + 1)
    }
  }

  @Test("J1: unknown states, ways that are not, and ERROR are EINVAL and change nothing")
  func wrongStates() throws {
    let rig = try rig()
    for state in [VFIO_DEVICE_STATE_ERROR, 8, 99, .max] {
      let (result, data) = rig.migrate(to: state)
      #expect(result == -EINVAL, "\(state)")
      #expect(data == -1)
    }
    #expect(rig.migrationState == Int32(VFIO_DEVICE_STATE_RUNNING))
    #expect(rig.migrate(to: VFIO_DEVICE_STATE_RUNNING) == (0, -1))
    #expect(rig.migrate(to: VFIO_DEVICE_STATE_STOP_COPY).result == 0)
    #expect(rig.migrate(to: VFIO_DEVICE_STATE_PRE_COPY).result == -EINVAL)
    #expect(rig.migrationState == Int32(VFIO_DEVICE_STATE_STOP_COPY))
  }

  @Test(
    "J1: a stream that is cut, changed or another device's is EINVAL; ERROR until the reset")
  func badStreams() throws {
    let old = try rig()
    let stream = old.drain(old.migrate(to: VFIO_DEVICE_STATE_STOP_COPY).data).bytes
    let new = try rig()
    func resume(_ bytes: [UInt8]) -> (write: Int, stop: Int32) {
      let incoming = new.migrate(to: VFIO_DEVICE_STATE_RESUMING)
      #expect(incoming.result == 0)
      let write = new.fill(incoming.data, bytes)
      let stop = new.migrate(to: VFIO_DEVICE_STATE_STOP).result
      if stop != 0 {
        #expect(new.migrationState == Int32(VFIO_DEVICE_STATE_ERROR))
        #expect(new.migrate(to: VFIO_DEVICE_STATE_RUNNING).result == -EINVAL)
      }
      new.caller.close(incoming.data)
      #expect(new.caller.ioctl(new.file, VFIO_DEVICE_RESET, at: 0) == 0)
      #expect(new.migrationState == Int32(VFIO_DEVICE_STATE_RUNNING))
      return (write, stop)
    }
    for length in 0..<stream.count {
      #expect(resume(Array(stream[..<length])) == (0, -EINVAL), "\(length)")
    }
    #expect(resume(stream + [1]) == (-Int(EINVAL), -EINVAL))
    for index in stream.indices {
      var bytes = stream
      bytes[index] ^= 0x40
      let result = resume(bytes)
      #expect(result.stop == -EINVAL, "byte \(index)")
    }
    #expect(resume(stream) == (0, 0))
    let other = try rig(.init(version: 0x34))
    let foreign = other.drain(other.migrate(to: VFIO_DEVICE_STATE_STOP_COPY).data).bytes
    #expect(resume(foreign) == (0, -EINVAL))
    let random = (0..<4096).map { _ in UInt8.random(in: .min ... .max) }
    #expect(resume(random).stop == -EINVAL)
  }

  @Test("J1: a reset or a close ends a session; the next user finds a device that runs")
  func ends() throws {
    let rig = try rig()
    let (_, data) = rig.migrate(to: VFIO_DEVICE_STATE_PRE_COPY)
    #expect(rig.caller.ioctl(rig.file, VFIO_DEVICE_RESET, at: 0) == 0)
    #expect(rig.migrationState == Int32(VFIO_DEVICE_STATE_RUNNING))
    #expect(rig.caller.read(data, 0x4000, count: 8) == -Int(ENODEV))
    #expect(rig.caller.poll(data)?.contains(.readable) == true)
    #expect(rig.preCopyInfo(data).result == -EINVAL)
    let (_, next) = rig.migrate(to: VFIO_DEVICE_STATE_STOP_COPY)
    #expect(rig.caller.write(next, 0x4000, count: 1) == -Int(EBADF))
    rig.caller.close(rig.devicefd)
    #expect(rig.caller.read(next, 0x4000, count: 8) == -Int(ENODEV))
    #expect(rig.vfio.function.migrationState == .running)
  }

  @Test("J1: registers answer while the device stands, and a peerless one begins no DMA")
  func peerless() throws {
    let rig = try rig()
    makeRing(rig)
    #expect(rig.migrate(to: VFIO_DEVICE_STATE_RUNNING_P2P).result == 0)
    rig.write(0x84, UInt8(0x20))
    rig.write(0x90, Self.ring)
    rig.write(0x86, UInt16(4))
    #expect(rig.read(0x90, as: UInt64.self) == Self.ring)
    #expect(rig.status & 7 == 0)
    #expect(copied(rig).isEmpty)
    #expect(rig.migrate(to: VFIO_DEVICE_STATE_RUNNING).result == 0)
    rig.wait()
    #expect(copied(rig).count == 4)
  }
}
