// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
//
// Benchmarks, apart from the library so that nobody who uses it fetches what they need.

import PackageDescription

let package = Package(
  name: "benchmarks",
  dependencies: [
    .package(name: "swift-iommu", path: ".."),
    // Without its traits: allocation counts would need a malloc of its own.
    .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.1", traits: []),
  ],
  targets: [
    .executableTarget(
      name: "Engine",
      dependencies: [
        .product(name: "Benchmark", package: "benchmark"),
        .product(name: "IOMMU", package: "swift-iommu"),
        .product(name: "LinuxABI", package: "swift-iommu"),
        .product(name: "PageTables", package: "swift-iommu"),
        .product(name: "SoftDevices", package: "swift-iommu"),
      ],
      path: "Benchmarks/Engine",
      plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
    .executableTarget(
      name: "Formats",
      dependencies: [
        "Fixtures",
        .product(name: "Benchmark", package: "benchmark"),
        .product(name: "PageTables", package: "swift-iommu"),
      ],
      path: "Benchmarks/Formats",
      plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
    // What `Formats` measures, and `Walks`, for `instructions` to look at.
    .target(
      name: "Fixtures", dependencies: [.product(name: "PageTables", package: "swift-iommu")],
      path: "Fixtures"),
    .executableTarget(
      name: "Walks",
      dependencies: ["Fixtures", .product(name: "PageTables", package: "swift-iommu")],
      path: "Walks"),
    // Runs under `iommu run`: the kernel's interface only.
    .executableTarget(
      name: "probe", path: "Clients/probe",
      cSettings: [
        .headerSearchPath("../common"),
        .headerSearchPath("../abi"),
      ]),
    .executableTarget(name: "Report", path: "Report"),
  ],
  swiftLanguageModes: [.v6]
)
