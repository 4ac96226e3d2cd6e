// SPDX-License-Identifier: Apache-2.0
//
// Drivers that are bound and unbound by shell scripts under `iommu run`, as people do it on a host.

import Foundation
import Testing

@Suite("Host drivers from a shell", .serialized) struct HostDriverCommandTests {
  private let machine = """
    iommus: [{name: dmar0, kind: intel}]
    devices:
      - {model: copy-engine, address: "0000:e0:04.0", group: 0}
      - {model: copy-engine, address: "0000:e0:05.0", group: 1}
      - {model: copy-engine, address: "0000:e0:05.1", group: 1, host-driver: ioatdma}
    """

  private func bash(_ script: String) throws -> Finished {
    try iommu(["run", "--machine", "-", "--", "bash", "-c", script], input: machine)
  }

  @Test("a device moves from the host's driver to vfio-pci, by driver_override")
  func override() throws {
    let run = try bash(
      """
      set -e
      cd /sys/bus/pci/devices/0000:e0:05.1
      echo 0000:e0:05.1 > driver/unbind
      [ ! -e driver ]
      echo vfio-pci > driver_override
      cat driver_override
      echo 0000:e0:05.1 > /sys/bus/pci/drivers_probe
      basename $(readlink driver)
      ls vfio-dev /dev/vfio/devices
      exec 5<> /dev/vfio/devices/vfio2
      grep DRIVER uevent
      """)
    #expect(run.status == 0, "\(run.errors)")
    #expect(
      run.output == """
        vfio-pci
        vfio-pci
        /dev/vfio/devices:
        vfio0
        vfio1
        vfio2

        vfio-dev:
        vfio2
        DRIVER=vfio-pci

        """)
  }

  @Test("what is refused fails the shell's command, and says why with --explain")
  func refusals() throws {
    let run = try iommu(
      [
        "run", "--explain", "--machine", "-", "--", "bash", "-c",
        """
        cd /sys/bus/pci/drivers
        echo 0000:e0:04.0 > ioatdma/bind || echo no match
        exec 5<> /dev/vfio/devices/vfio0
        echo 0000:e0:04.0 > vfio-pci/unbind || echo open
        exec 5>&-
        echo 0000:e0:04.0 > vfio-pci/unbind && echo closed
        cat /dev/vfio/devices/vfio0 || ls /dev/vfio/devices /dev/vfio
        """,
      ], input: machine)
    #expect(
      run.output == """
        no match
        open
        closed
        /dev/vfio:
        1
        devices
        vfio

        /dev/vfio/devices:
        vfio1

        """, "\(run.errors)")
    #expect(run.errors.contains("echo: write error: No such device"))
    #expect(run.errors.contains("echo: write error: Device or resource busy"))
    #expect(
      run.errors.contains(
        "iommu: write on /sys/bus/pci/drivers/vfio-pci/unbind: 0000:e0:04.0 is open in 1 file(s)"
      ))
    #expect(run.errors.contains("No such file or directory"))
  }

  @Test("C3: a group in use by a program gets no host driver, and the other way round")
  func ownedGroup() throws {
    let run = try bash(
      """
      python3 -c '
      import os, fcntl, struct, errno
      def bind():
        fd = os.open("/dev/vfio/devices/vfio1", os.O_RDWR)
        try: fcntl.ioctl(fd, 0x3b76, bytearray(struct.pack("IIiI", 16, 0, iommu, 0)))
        except OSError as error: print("bind:", errno.errorcode[error.errno])
        else: print("bound")
        return fd
      def echo(path):
        fd = os.open("/sys/bus/pci/drivers/" + path, os.O_WRONLY)
        try: os.write(fd, b"0000:e0:05.1")
        except OSError as error: print(path, errno.errorcode[error.errno])
        os.close(fd)
      iommu = os.open("/dev/iommu", os.O_RDWR)
      os.close(bind())
      echo("ioatdma/unbind")
      fd = bind()
      echo("ioatdma/bind")
      os.close(fd)
      echo("ioatdma/bind")
      bind()
      '
      """)
    #expect(run.status == 0, "\(run.errors)")
    #expect(run.output == "bind: EPERM\nbound\nioatdma/bind EBUSY\nbind: EPERM\n")
  }
}
