// SPDX-License-Identifier: Apache-2.0
//
// Change of process and DMA-bufs, failed at each failure point: the same mappings, and the same
// sums on the same accounts, as before the failed call.

import CLinuxABI
import Foundation
import IOMMU
import SelfTestDriver
import TestSupport
import Testing

@testable import LinuxABI

@Suite struct OwnerFailureTests {
  let door: BackDoor
  let successor: LocalCaller
  let iova: UInt64 = 0x100_0000
  let page: UInt64 = 4096

  init() throws {
    door = try BackDoor()
    door.caller.right = .relinquished
    successor = try LocalCaller(arena: door.caller.arena)
    successor.right = .relinquished
  }

  /// Compares the sums of both processes too.
  private func makeSweep() -> FailureSweep {
    let (door, successor) = (door, successor)
    return FailureSweep {
      var lines = door.context.snapshot
      for caller in [door.caller, successor] {
        let owner = caller.owner
        lines.append(
          "user \(owner.user.byteCount), locked \(owner.process.locked.byteCount), "
            + "pinned \(owner.process.pinned.byteCount)")
      }
      return lines
    }
  }

  private func mapFile(_ descriptor: Int32, at iova: UInt64) -> Int32 {
    var cmd = iommu_ioas_map_file()
    cmd.size = 40
    cmd.flags = 7
    cmd.ioas_id = door.ioas
    cmd.fd = descriptor
    cmd.length = 4 * page
    cmd.iova = iova
    return door.caller.ioctl(door.file, IOMMU_IOAS_MAP_FILE, &cmd)
  }

  @Test("fail-nth: CHANGE_PROCESS moves every account or none", arguments: [false, true])
  func changeProcess(perProcess: Bool) throws {
    if perProcess {
      #expect(door.destroy(door.ioas) == 0)
      try door.context.setAccountsPerProcess(true)
      door.ioas = door.makeIOAS()
    }
    #expect(door.makeDevice().result == 0)
    for index in 0..<3 as Range<UInt64> {
      let descriptor = door.caller.add(try LocalMemory(byteCount: 4 * page))
      #expect(mapFile(descriptor, at: iova + index * 8 * page) == 0)
    }
    func change(to caller: LocalCaller) -> Int32 {
      var cmd = iommu_ioas_change_process(size: 8, __reserved: 0)
      return caller.ioctl(door.file, IOMMU_IOAS_CHANGE_PROCESS, &cmd)
    }
    let sweep = makeSweep()
    sweep("IOAS_CHANGE_PROCESS") {
      change(to: successor)
    } undo: {
      #expect(change(to: door.caller) == 0)
    }
    #expect(sweep.failed == [.copyIn, .account])
  }

  @Test("fail-nth: what maps a DMA-buf, and what makes one, fails whole")
  func buffers() {
    #expect(door.makeDevice().result == 0)
    let other = door.makeIOAS()
    #expect(door.makeDevice(on: other).result == 0)
    let sweep = makeSweep()
    var made: Int32 = 0
    sweep("DMABUF_GET") {
      made = door.call(IOMMU_TEST_OP_DMABUF_GET) { $0.dmabuf_get.length = 16384 }.result
      return made
    } undo: {
      door.caller.close(made)
    }
    let descriptor = door.call(IOMMU_TEST_OP_DMABUF_GET) { $0.dmabuf_get.length = 16384 }.result
    sweep("IOAS_MAP_FILE of a DMA-buf") {
      mapFile(descriptor, at: iova)
    } undo: {
      #expect(door.unmap(iova, 4 * page) == 0)
    }
    #expect(mapFile(descriptor, at: iova) == 0)
    sweep("IOAS_COPY of a DMA-buf") {
      var cmd = iommu_ioas_copy(
        size: 40, flags: 7, dst_ioas_id: other, src_ioas_id: door.ioas, length: 4 * page,
        dst_iova: iova, src_iova: iova)
      return door.caller.ioctl(door.file, IOMMU_IOAS_COPY, &cmd)
    } undo: {
      var cmd = iommu_ioas_unmap(size: 24, ioas_id: other, iova: iova, length: 4 * page)
      #expect(door.caller.ioctl(door.file, IOMMU_IOAS_UNMAP, &cmd) == 0)
    }
    #expect(sweep.failed.isSuperset(of: [.copyIn, .copyOut, .descriptor, .area, .tableMemory]))
  }
}
