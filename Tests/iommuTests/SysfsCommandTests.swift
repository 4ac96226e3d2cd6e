// SPDX-License-Identifier: Apache-2.0
//
// What programs under `iommu run` write to /sys and find refused, beside what changes in it while
// they do.

import Foundation
import Testing

@Suite("What programs write to /sys") struct SysfsCommandTests {
  private let machine = """
    iommus: [{name: dmar0, kind: intel}]
    devices:
      - {model: copy-engine, address: "0000:e0:04.0", group: 0}
      - {model: copy-engine, address: "0000:e0:05.0", group: 1}
      - {model: copy-engine, address: "0000:e0:06.0", group: 2, host-driver: ioat-mdev}
    """

  private func bash(_ script: String) throws -> Finished {
    try iommu(
      ["run", "--machine", "-", "--", "bash", "-c", script + "\n"], input: machine)
  }

  @Test("J1: libudev is told to take devices from a /sys that is no sysfs")
  func verification() throws {
    #expect(try bash("echo ${SYSTEMD_DEVICE_VERIFY_SYSFS}").output == "0\n")
    let kind = try bash("stat -f -c %T /sys/bus/pci/devices").output
    #expect(kind == "tmpfs\n", "where it is a sysfs, nobody need be told")
  }

  @Test("a command for a file that is not there is refused, and so is one for what only shows")
  func refusals() throws {
    let run = try bash(
      """
      cd /sys/bus/pci/devices/0000:e0:04.0
      for file in rescan resource0 vendor enable uevent reset_method \\
          /sys/bus/pci/drivers/ioat-mdev/unbind iommu_group/type; do
        echo 1 > $file && echo "$file was written"
      done
      cat vendor
      """)
    #expect(run.output == "0x8086\n", "\(run)")
    let refused = run.errors.split(separator: "\n")
    #expect(
      refused.count == 8 && refused.allSatisfy { $0.hasSuffix("Permission denied") }, "\(run)")
  }

  @Test(
    "J1: config is read and written as setpci does it, at any offset, and shows what is so now")
  func configuration() throws {
    let run = try bash(
      """
      cd /sys/bus/pci/devices/0000:e0:04.0
      at() { dd if=config bs=1 skip=$1 count=$2 status=none | od -An -tx1; }
      put() { printf "$2" | dd of=config bs=2 seek=$1 conv=notrunc status=none; }
      stat -c %a:%s config; at 0 6; put 2 '\\006\\000'; at 4 2
      put 0 '\\125\\252'; at 0 2
      exec 3<> config; dd bs=4 count=1 status=none <&3 >/dev/null
      printf '\\002\\000' >&3; exec 3>&-; at 4 2
      put 2048 '\\001\\001'; echo $?; wc -c < config
      """)
    #expect(
      run.output == """
        644:4096
         86 80 21 20 00 00
         06 00
         86 80
         02 00
        1
        4096

        """, "\(run)")
  }

  @Test("what a program tries to move and remove is there still, and devices come and go")
  func wholeView() throws {
    let run = try bash(
      """
      cd /sys
      mv bus/mdev/devices bus/mdev/others; rm -r bus/pci/drivers/vfio-pci; mkdir new
      ln -s bus other; rm bus/pci/devices/0000:e0:04.0; rmdir class/vfio
      uuid=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
      echo $uuid > class/mdev_bus/0000:e0:06.0/mdev_supported_types/ioat-mdev-software/create
      ls bus/mdev/devices class/vfio-dev
      echo 1 | tee bus/mdev/devices/$uuid/remove
      ls bus/mdev/devices
      echo 0000:e0:05.0 > bus/pci/drivers/vfio-pci/unbind; ls class/vfio-dev
      echo vfio-pci >> bus/pci/devices/0000:e0:05.0/driver_override
      echo 0000:e0:05.0 | dd of=bus/pci/drivers_probe status=none
      ls class/vfio-dev
      """)
    #expect(
      run.output == """
        bus/mdev/devices:
        83b8f4f2-509f-382f-3c1e-e6bfe0fa1001

        class/vfio-dev:
        vfio0
        vfio1
        vfio2
        1
        vfio0
        vfio0
        vfio1

        """, "\(run)")
    #expect(
      run.errors.split(separator: "\n").allSatisfy { $0.hasSuffix("Read-only file system") },
      "\(run)")
  }

  @Test("J1: a write of 1 to reset resets the function under its user")
  func reset() throws {
    let run = try bash(
      """
      python3 -c '
      import os, fcntl, struct
      iommu = os.open("/dev/iommu", os.O_RDWR)
      device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
      fcntl.ioctl(device, 0x3b76, bytearray(struct.pack("IIiI", 16, 0, iommu, 0)))
      region = bytearray(struct.pack("IIIIQQ", 32, 0, 7, 0, 0, 0))
      fcntl.ioctl(device, 0x3b6c, region)
      config = struct.unpack("IIIIQQ", region)[5]
      os.pwrite(device, b"\\7\\0\\0\\0", config + 0x48)
      os.pwrite(device, b"\\6\\0", config + 4)
      def show(): print(os.pread(device, 1, config + 0x48), os.pread(device, 1, config + 4))
      show()
      open("/sys/bus/pci/devices/0000:e0:04.0/reset", "w").write("1")
      show()
      '
      """)
    #expect(run.output == "b'\\x07' b'\\x06'\nb'\\x00' b'\\x06'\n", "\(run)")
  }
}
