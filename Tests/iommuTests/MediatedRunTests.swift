// SPDX-License-Identifier: Apache-2.0
//
// Mediated devices by `iommu run`, with the example that makes them and with shell commands.

import Foundation
import Testing

@Suite("Mediated devices in a program's hands") struct MediatedRunTests {
  private let machine = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Examples/mdev-copy/machine.yaml").path

  @Test(
    "D2: mdev-copy makes two slices, copies apart, trespasses in vain, and removes them",
    arguments: ["pasid", "software"])
  func example(type: String) throws {
    let run = try iommu(
      "run", "--machine", machine, "--", built("mdev-copy").path, "--type", type)
    #expect(run.status == 0, "\(run.errors)")
    #expect(
      run.output.contains("user 1 read 0x40000000, which only user 2 has: source address"))
    #expect(run.output.contains("both are closed and removed"))
  }

  @Test(
    "H2: --explain and --trace name the slice whose access failed, of every type",
    arguments: ["pasid", "fixed", "software"])
  func faultLines(type: String) throws {
    let explained = try iommu(
      "run", "--explain", "--machine", machine, "--", built("mdev-copy").path, "--quiet",
      "--type", type)
    let traced = try iommu(
      "run", "--trace", "-", "--machine", machine, "--", built("mdev-copy").path, "--quiet",
      "--type", type)
    #expect(explained.status == 0 && traced.status == 0)
    for (run, prefix) in [(explained, "iommu: DMA fault: "), (traced, "     DMA fault: ")] {
      let lines = run.errors.split(separator: "\n").filter { $0.hasPrefix(prefix) }
      let sources = lines.compactMap { line in
        line.dropFirst(prefix.count).firstRange(of: " iova ").map {
          String(line.dropFirst(prefix.count)[..<$0.lowerBound])
        }
      }
      #expect(sources.count == 2 && Set(sources).count == 1, "\(run.errors)")
      for source in sources {
        let uuid = source.prefix(36)
        #expect(UUID(uuidString: String(uuid)) != nil, "\(source)")
        #expect(source.dropFirst(36) == (type == "software" ? "" : " (0000:e0:06.0)"))
      }
    }
  }

  @Test("J2: a shell makes and removes mediated devices, and is told what is wrong")
  func shell() throws {
    let script = """
      uuid=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
      type=/sys/class/mdev_bus/0000:e0:06.0/mdev_supported_types/ioat-mdev-pasid
      echo nonsense > $type/create; echo "status $?"
      echo $uuid > $type/create; echo "status $?"
      echo $uuid > $type/create; echo "status $?"
      cat $type/available_instances
      ls $type/devices /sys/bus/mdev/devices/$uuid/vfio-dev
      test -c /dev/vfio/devices/vfio0 && echo node
      exec 9<> /dev/vfio/devices/vfio0 && echo opened
      echo 1 > /sys/bus/mdev/devices/$uuid/remove; echo "status $?"
      ls /sys/bus/mdev/devices /dev/vfio/devices
      cat $type/available_instances
      """
    let run = try iommu("run", "--machine", machine, "--", "bash", "-c", script)
    #expect(run.status == 0, "\(run.errors)")
    #expect(
      run.output == """
        status 1
        status 0
        status 1
        3
        \(type(of: "devices"))node
        opened
        status 0
        \(type(of: "none"))4

        """, "\(run.output) \(run.errors)")
    #expect(run.errors.contains("Invalid argument") && run.errors.contains("File exists"))
  }

  /// What `ls` says of two directories.
  private func type(of listing: String) -> String {
    listing == "none"
      ? "/dev/vfio/devices:\n\n/sys/bus/mdev/devices:\n"
      : "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001/vfio-dev:\nvfio0\n\n"
        + "/sys/class/mdev_bus/0000:e0:06.0/mdev_supported_types/ioat-mdev-pasid/devices:\n"
        + "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n"
  }
}
