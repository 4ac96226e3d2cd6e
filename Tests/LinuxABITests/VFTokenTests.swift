// SPDX-License-Identifier: Apache-2.0
//
// J1: VF tokens by the bytes of BIND_IOMMUFD, GET_DEVICE_FD's names and DEVICE_FEATURE: who has to
// present one, who sets it.

import CLinuxABI
import Foundation
import IOMMU
import SoftDevices
import SoftwareIOMMU
import TestSupport
import Testing

@testable import LinuxABI
@testable import VFIO

@Suite(.timeLimit(.minutes(10))) struct VFTokenTests {
  static let uuid = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
  static let bytes: [UInt8] = [
    0xbd, 0x8d, 0x9d, 0x2b, 0x5a, 0x5f, 0x4f, 0x5a, 0xa2, 0x11, 0xf5, 0x91, 0x51, 0x4b, 0xa1,
    0xf3,
  ]
  let caller: LocalCaller
  let physical: VFIODevice
  let virtual: VFIODevice
  /// Of a physical function that vfio-pci has not got.
  let orphan: VFIODevice
  let plain: VFIODevice
  let iommufd: Int32

  init() throws {
    let system = IOMMUSystem()
    let iommu = SoftwareIOMMU(name: "dmar0", memory: system.memory, events: system.events)
    caller = try LocalCaller()
    func device(
      _ number: UInt8, sriov: SRIOVLayout? = nil, isVirtual: Bool = false,
      of parent: VFIODevice? = nil
    ) throws -> VFIODevice {
      let address = RequesterID(bus: 1, device: number, function: 0)
      let group = system.addGroup()
      let physical = try system.addDevice(
        name: "\(address)", requester: address, driver: iommu, group: group)
      let function = PCIFunction(
        device: physical, model: CopyEngine(),
        upstream: SoftwareIOMMUBus(iommu: iommu, requester: address), sriov: sriov,
        isVirtual: isVirtual)
      return VFIODevice(
        index: UInt32(number), function: function, group: VFIOGroup(group: group),
        physicalFunction: parent)
    }
    let layout = SRIOVLayout(
      total: 1, firstOffset: 8, deviceID: 0x2021, bars: [BAR(index: 0, size: 16 << 10)],
      barAddresses: [0xC000_0000])
    physical = try device(0, sriov: layout)
    virtual = try device(1, isVirtual: true, of: physical)
    orphan = try device(2, isVirtual: true)
    plain = try device(3)
    iommufd = caller.add(try IOMMUNode(system: system).open(flags: 2, by: caller))
  }

  /// Binds, with a token's bytes where there are some.
  private func bind(_ device: VFIODevice, _ token: [UInt8]? = nil) throws -> (
    result: Int32, fd: Int32
  ) {
    let fd = caller.add(try VFIODeviceNode(device: device).open(flags: 2, by: caller))
    return (bind(fd, token), fd)
  }

  private func bind(_ fd: Int32, _ token: [UInt8]?) -> Int32 {
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 24
    bind.iommufd = iommufd
    if let token {
      for (index, byte) in token.enumerated() { caller.put(byte, at: 0x4000 + UInt64(index)) }
      bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN
      bind.token_uuid_ptr = 0x4000
    }
    guard let file = try? caller.openFile(descriptor: fd) else { return -EBADF }
    return caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind)
  }

  private func feature(
    _ fd: Int32, _ flags: UInt32, argsz: UInt32 = 24, token: [UInt8] = bytes
  ) throws -> Int32 {
    caller.put(argsz, at: 0x5000)
    caller.put(flags, at: 0x5004)
    for (index, byte) in token.enumerated() { caller.put(byte, at: 0x5008 + UInt64(index)) }
    let file = try #require(try caller.openFile(descriptor: fd))
    return caller.ioctl(file, VFIO_DEVICE_FEATURE, at: 0x5000)
  }

  private static let other: [UInt8] = [UInt8](repeating: 7, count: 16)

  @Test("J1: a virtual function is bound with the token of its physical one: EACCES")
  func virtualFunction() throws {
    #expect(try bind(virtual).result == -EACCES)
    #expect(try bind(virtual, Self.bytes).result == -EACCES, "nobody knows the first token")
    let owner = try bind(physical, Self.bytes)
    #expect(owner.result == 0, "a token that is presented first is set")
    #expect(try bind(virtual).result == -EACCES)
    #expect(try bind(virtual, Self.other).result == -EACCES)
    let user = try bind(virtual, Self.bytes)
    #expect(user.result == 0)
    // The token stays with the physical function when its user goes.
    caller.close(user.fd)
    caller.close(owner.fd)
    #expect(try bind(virtual, Self.bytes).result == 0)
  }

  @Test("J1: a physical function asks for the token while a virtual one has a user: EACCES")
  func physicalFunction() throws {
    let owner = try bind(physical)
    #expect(owner.result == 0)
    #expect(try feature(owner.fd, VFIO_DEVICE_FEATURE_SET) == 0)
    let user = try bind(virtual, Self.bytes)
    #expect(user.result == 0)
    caller.close(owner.fd)
    #expect(try bind(physical).result == -EACCES)
    #expect(try bind(physical, Self.other).result == -EACCES)
    let next = try bind(physical, Self.bytes)
    #expect(next.result == 0)
    caller.close(next.fd)
    caller.close(user.fd)
    #expect(try bind(physical, Self.other).result == 0, "without users a token sets it")
    #expect(try bind(virtual, Self.bytes).result == -EACCES)
    #expect(try bind(virtual, Self.other).result == 0)
  }

  @Test(
    "J1: a token where none is used is EINVAL; one that cannot be read EFAULT; a tail E2BIG")
  func unused() throws {
    #expect(try bind(plain, Self.bytes).result == -EINVAL)
    #expect(try bind(orphan, Self.bytes).result == -EINVAL)
    #expect(try bind(plain).result == 0)
    #expect(try bind(orphan).result == 0)
    let file = try VFIODeviceNode(device: physical).open(flags: 2, by: caller)
    var bind = vfio_device_bind_iommufd()
    bind.argsz = 24
    bind.iommufd = iommufd
    bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN
    bind.token_uuid_ptr = 0x10
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -EFAULT)
    // A structure of the first size has no pointer.
    bind.token_uuid_ptr = 0x4000
    bind.argsz = 16
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -EFAULT)
    bind.flags = 2
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -EINVAL)
    bind.flags = 0
    bind.argsz = 32
    caller.put(UInt64(1), at: 0x2018)
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == -E2BIG)
    caller.put(UInt64(0), at: 0x2018)
    #expect(caller.ioctl(file, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0)
  }

  @Test("J1: each refusal of a token says whose it is, who sets it, and who is in the way")
  func sentences() throws {
    func reason(_ device: VFIODevice, _ token: [UInt8]?) -> String {
      do throws(IOMMUError) {
        try device.checkToken(token.map { VFToken(bytes: $0) })
        return "taken"
      } catch {
        return error.reason
      }
    }
    let (pf, vf) = (physical.function.name, virtual.function.name)
    let unset =
      "which nobody has set yet: the user of \(pf) does, by presenting one when it opens that or "
      + "by VFIO_DEVICE_FEATURE_PCI_VF_TOKEN"
    #expect(reason(virtual, nil) == "\(vf) asks for the VF token of \(pf), \(unset)")
    #expect(
      reason(virtual, Self.bytes)
        == "what \(vf) was given is not the VF token of \(pf), \(unset)")
    // Nobody uses a virtual function: the physical one is anybody's, with a token or without.
    #expect(reason(physical, nil) == "taken")
    #expect(reason(physical, Self.bytes) == "taken")
    let set = "which the user of \(pf) set"
    #expect(reason(virtual, nil) == "\(vf) asks for the VF token of \(pf), \(set)")
    #expect(
      reason(virtual, Self.other) == "what \(vf) was given is not the VF token of \(pf), \(set)"
    )
    #expect(reason(virtual, Self.bytes) == "taken")
    #expect(try bind(virtual, Self.bytes).result == 0)
    #expect(
      reason(physical, nil)
        == "\(pf) asks for its VF token, as set last, while 1 of its virtual functions is in "
        + "use: their users know it")
    #expect(
      reason(physical, Self.other)
        == "what \(pf) was given is not its VF token, as set last; it takes another once none of "
        + "its virtual functions is in use, and now 1 is")
    #expect(reason(physical, Self.bytes) == "taken")
    #expect(
      reason(orphan, Self.bytes)
        == "\(orphan.function.name) takes no vf_token: vfio-pci did not have its physical function "
        + "when it got this one")
    #expect(
      reason(plain, Self.bytes)
        == "\(plain.function.name) is no virtual function and has none: it takes no vf_token")
  }

  @Test("J1: the VF token is a feature that is set and probed, never read: EINVAL, ENOTTY")
  func featureChecks() throws {
    let owner = try bind(physical)
    let get = VFIO_DEVICE_FEATURE_GET
    let set = VFIO_DEVICE_FEATURE_SET
    let probe = VFIO_DEVICE_FEATURE_PROBE
    #expect(try feature(owner.fd, probe | set) == 0)
    #expect(try feature(owner.fd, probe) == 0)
    #expect(try feature(owner.fd, probe | set, argsz: 8) == 0)
    #expect(try feature(owner.fd, get) == -EINVAL)
    #expect(try feature(owner.fd, probe | get) == -EINVAL)
    #expect(try feature(owner.fd, 0) == -EINVAL)
    #expect(try feature(owner.fd, set, argsz: 23) == -EINVAL)
    #expect(try feature(owner.fd, set | 0xFFF) == -ENOTTY, "another feature")
    let other = try bind(plain)
    #expect(try feature(other.fd, set) == -ENOTTY)
    #expect(try feature(owner.fd, set, token: Self.other) == 0)
    let user = try bind(virtual, Self.other)
    #expect(user.result == 0)
    #expect(try feature(user.fd, set) == -ENOTTY, "a virtual function has none of its own")
  }

  @Test("J1: GET_DEVICE_FD's name carries the token, with the same rules")
  func names() throws {
    func errno(_ device: VFIODevice, _ text: String) -> Int32? {
      do throws(IOMMUError) {
        return try device.matches(text) ? 0 : nil
      } catch {
        return error.errno.rawValue
      }
    }
    let name = virtual.function.name
    #expect(errno(virtual, name) == EACCES)
    #expect(errno(virtual, "\(name) vf_token=\(Self.uuid)") == EACCES)
    #expect(errno(physical, "\(physical.function.name) vf_token=\(Self.uuid)") == 0)
    #expect(errno(virtual, "\(name) vf_token=\(Self.uuid)") == 0)
    #expect(errno(virtual, "\(name)  vf_token=\(Self.uuid.uppercased()) ") == 0)
    #expect(errno(virtual, "\(name) vf_token=\(Self.uuid.dropLast())") == EINVAL)
    #expect(errno(virtual, "\(name) vf_token=\(Self.uuid) vf_token=\(Self.uuid)") == EINVAL)
    #expect(errno(plain, "\(plain.function.name) vf_token=\(Self.uuid)") == EINVAL)
    #expect(errno(plain, name) == nil)
  }
}
