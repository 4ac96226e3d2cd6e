// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
//
// The targets are the architecture: imports go down this list only.

import PackageDescription

let strict: [SwiftSetting] =
  [.strictMemorySafety()]
  + (Context.environment["CI"] == nil ? [] : [.treatAllWarnings(as: .error)])

/// The sanitizer that this build is for: `thread`, `address` or none.
let sanitizer = Context.environment["SANITIZE"]

let system: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let arguments: Target.Dependency = .product(
  name: "ArgumentParser", package: "swift-argument-parser")

/// A C program of Examples/, against the kernel's interface only.
func example(
  _ name: String, in directory: String = "Examples", exclude: [String] = []
) -> Target {
  .executableTarget(
    name: name, path: "\(directory)/\(name)", exclude: exclude,
    cSettings: [
      .headerSearchPath(directory == "Examples" ? "../common" : "../../../Examples/common"),
      .headerSearchPath(
        (directory == "Examples" ? "../../" : "../../../") + "Sources/CLinuxABI/include"),
    ])
}

let package = Package(
  name: "swift-iommu",
  products: [
    .library(name: "IOMMU", targets: ["IOMMU", "SoftwareIOMMU", "HardwareTables"]),
    .library(name: "PageTables", targets: ["PageTables"]),
    .library(name: "SoftDevices", targets: ["VFIO", "SoftDevices"]),
    .library(name: "LinuxABI", targets: ["LinuxABI", "CLinuxABI"]),
    .executable(name: "iommu", targets: ["iommu"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
  ],
  targets: [
    // The engine.
    .target(name: "PageTables", swiftSettings: strict),
    .target(name: "HardwareTables", dependencies: ["PageTables"], swiftSettings: strict),
    .target(name: "CProcessMemory"),
    .target(
      name: "IOMMU", dependencies: ["PageTables", "CProcessMemory", system],
      swiftSettings: strict),
    .target(
      name: "SoftwareIOMMU", dependencies: ["HardwareTables", "IOMMU", "PageTables"],
      swiftSettings: strict),
    .target(
      name: "SelfTestDriver", dependencies: ["IOMMU", "PageTables"], swiftSettings: strict),

    // The devices.
    .target(
      name: "VFIO", dependencies: ["IOMMU", "SoftwareIOMMU", system], swiftSettings: strict),
    .target(name: "CBlockFile"),
    .target(
      name: "SoftDevices", dependencies: ["CBlockFile", "VFIO", "SoftwareIOMMU", system],
      swiftSettings: strict),

    // The faces.
    .target(name: "CLinuxABI"),
    .target(
      name: "LinuxABI",
      dependencies: ["CLinuxABI", "IOMMU", "SelfTestDriver", "VFIO", system],
      swiftSettings: strict),
    .target(
      name: "Machine",
      dependencies: [
        "IOMMU", "SoftwareIOMMU", "VFIO", "SoftDevices", "LinuxABI", "SelfTestDriver", "Yams",
        system,
      ],
      swiftSettings: strict),
    .target(name: "CSyscalls"),
    // What the interposer carries out in place of the processor.
    .target(name: "X86Instructions", swiftSettings: strict),
    .target(
      name: "Interposer",
      dependencies: [
        "CSyscalls", "CProcessMemory", "LinuxABI", "IOMMU", "X86Instructions", logging, system,
      ],
      swiftSettings: strict),
    .executableTarget(
      name: "iommu",
      dependencies: [
        "Interposer", "Machine", "LinuxABI", "IOMMU", arguments, logging, "dma-copy",
        "trespass",
      ],
      swiftSettings: strict),

    // Programs that know nothing of us: headers only, nothing linked.
    example("dma-copy"),
    example("trespass"),
    example("ioasid-use-cases", exclude: ["machine.yaml"]),
    example("mdev-copy", exclude: ["README.md", "machine.yaml"]),
    example(
      "user-tables",
      exclude: ["README.md", "amd.yaml", "intel.yaml", "riscv.yaml", "smmuv3.yaml"]),
    example("page-requests", exclude: ["machine.yaml"]),
    example("nvme-rw", exclude: ["machine.yaml"]),
    example("live-migration", exclude: ["machine.yaml"]),

    .target(
      name: "TestSupport",
      dependencies: [
        "CProcessMemory", "LinuxABI", "CLinuxABI", "IOMMU", "SoftwareIOMMU", "SoftDevices",
        system,
      ],
      path: "Tests/TestSupport"),
    .target(name: "FuzzSupport", path: "Tests/FuzzSupport"),
    .target(name: "CNativeInstructions", path: "Tests/CNativeInstructions"),
    .testTarget(
      name: "X86InstructionsTests",
      dependencies: ["CNativeInstructions", "FuzzSupport", "X86Instructions"]),
    .testTarget(name: "PageTablesTests", dependencies: ["FuzzSupport", "PageTables"]),
    .testTarget(
      name: "HardwareTablesTests",
      dependencies: ["FuzzSupport", "HardwareTables", "PageTables"]),
    .testTarget(
      name: "IOMMUTests", dependencies: ["IOMMU", "SoftwareIOMMU"], exclude: ["Misuse"]),
    .testTarget(
      name: "SoftwareIOMMUTests",
      dependencies: ["FuzzSupport", "SoftwareIOMMU", "HardwareTables"]),
    .testTarget(
      name: "SelfTestDriverTests",
      dependencies: ["TestSupport", "SelfTestDriver", "LinuxABI", "CLinuxABI", "PageTables"]),
    .testTarget(name: "VFIOTests", dependencies: ["TestSupport", "VFIO", "SoftwareIOMMU"]),
    .testTarget(
      name: "SoftDevicesTests",
      dependencies: [
        "FuzzSupport", "TestSupport", "SoftDevices", "LinuxABI", "CLinuxABI", "PageTables",
        "VFIO",
        "SoftwareIOMMU",
      ]),
    .testTarget(
      name: "MachineTests",
      dependencies: [
        "TestSupport", "Machine", "IOMMU", "LinuxABI", "SoftwareIOMMU", "VFIO", "CLinuxABI",
        system,
      ]),
    .testTarget(
      name: "LinuxABITests",
      dependencies: ["TestSupport", "LinuxABI", "CLinuxABI", "SoftwareIOMMU", "VFIO"],
      exclude: ["abi"]),
    // The stress test: a library for its test and for the program that runs as long as asked.
    .target(
      name: "Stress",
      dependencies: ["IOMMU", "SoftwareIOMMU", "SelfTestDriver", "PageTables", system],
      path: "Tests/Stress"),
    .executableTarget(
      name: "iommu-stress", dependencies: ["Stress", arguments],
      path: "Tests/Programs/iommu-stress"),
    .testTarget(name: "StressTests", dependencies: ["Stress"]),
    .testTarget(
      name: "InterposerTests",
      dependencies: [
        "Interposer", "CProcessMemory", "CSyscalls", "LinuxABI", "IOMMU", "SoftwareIOMMU",
        "PageTables", "memory-holder", "errands", "refused",
      ],
      swiftSettings: sanitizer.map { [.define("SANITIZER"), .define("SANITIZER_\($0)")] } ?? []),
    // What the interposer's tests run: a host of small devices and the programs that use them.
    .executableTarget(
      name: "interposer-host",
      dependencies: ["Interposer", "LinuxABI", "IOMMU", "TestSupport"],
      path: "Tests/Programs/interposer-host", swiftSettings: strict),
    .executableTarget(name: "interposer-client", path: "Tests/Programs/interposer-client"),
    .executableTarget(name: "refused", path: "Tests/Programs/refused"),
    .executableTarget(name: "errands", path: "Tests/Programs/errands"),
    example("two-processes", in: "Tests/Programs"),
    example("fail-nth", in: "Tests/Programs"),
    example("process-stress", in: "Tests/Programs"),
    example("locked-memory", in: "Tests/Programs"),
    example("large-map", in: "Tests/Programs"),
    example("memory-holder", in: "Tests/Programs"),
    example("device-memory", in: "Tests/Programs"),
    example("peer-to-peer", in: "Tests/Programs"),
    example("virtual-functions", in: "Tests/Programs"),
    example("both-descriptors", in: "Tests/Programs"),
    example("ioasid-sources", in: "Tests/Programs"),
    example("mapped-registers", in: "Tests/Programs"),
    example("work-portal", in: "Tests/Programs"),
    example("nvme-stamps", in: "Tests/Programs"),
    .testTarget(
      name: "iommuTests",
      dependencies: [
        "Machine", "iommu", "dma-copy", "trespass", "ioasid-use-cases", "two-processes",
        "fail-nth", "process-stress", "locked-memory", "large-map", "device-memory",
        "peer-to-peer", "virtual-functions", "both-descriptors", "mdev-copy", "ioasid-sources",
        "mapped-registers", "work-portal", "nvme-stamps",
        "user-tables",
        "page-requests", "nvme-rw", "live-migration", "refused",
      ],
      swiftSettings: sanitizer.map { [.define("SANITIZER_\($0)")] } ?? []),
  ],
  swiftLanguageModes: [.v6]
)

// Sanitizers cannot be linked into a static program.
if sanitizer == nil {
  package.targets.append(
    .executableTarget(
      name: "interposer-client-static", path: "Tests/Programs/interposer-client-static",
      linkerSettings: [.unsafeFlags(["-static-executable"])]))
  // A process that the thread sanitizer has given a thread cannot enter a user namespace.
  package.targets += [
    .executableTarget(name: "confined", path: "Tests/Programs/confined"),
    .testTarget(name: "ConfinedTests", dependencies: ["confined", "iommu"]),
  ]
}

// What no test runs under a sanitizer is not built for it. Page tables and the decoder know nothing
// of threads; the interposer and the command are not tested under the address sanitizer.
if sanitizer == "thread" {
  let threadless = ["PageTablesTests", "HardwareTablesTests", "X86InstructionsTests"]
  package.targets.removeAll { threadless.contains($0.name) }
}
if sanitizer == "address" {
  let tested = [
    "PageTablesTests", "IOMMUTests", "SoftwareIOMMUTests", "SoftDevicesTests", "LinuxABITests",
  ]
  let below = [
    "PageTables", "HardwareTables", "CProcessMemory", "IOMMU", "SoftwareIOMMU",
    "SelfTestDriver", "VFIO", "CBlockFile", "SoftDevices", "CLinuxABI", "LinuxABI",
    "TestSupport", "FuzzSupport",
  ]
  package.targets.removeAll { !(tested + below).contains($0.name) }
  package.products.removeAll { $0.name == "iommu" }
  package.dependencies.removeAll { !"\($0.kind)".contains("swift-system") }
}
