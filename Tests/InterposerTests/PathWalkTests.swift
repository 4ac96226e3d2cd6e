// SPDX-License-Identifier: Apache-2.0
//
// Following paths through a view and a host (MODEL J1), in trees that are made up.

import SystemPackage
import Testing

@testable import Interposer

@Suite("Following a path")
struct PathWalkTests {
  private static let hostTree = Tree.directory([
    "bin": .link("usr/bin"),
    "usr": .directory(["bin": .directory(["env": .file])]),
    "dev": .directory([
      "null": .file, "fd": .link("/proc/self/fd"), "vfio": .directory(["9": .file]),
      "shm": .directory(["file": .file]), "to-etc": .link("../etc"),
    ]),
    "sys": .directory([
      "bus": .directory(["usb": .directory(["devices": .directory([:])])]),
      "class": .directory(["net": .link("../bus/usb")]),
      "only": .directory(["value": .file]),
    ]),
    "etc": .directory(["hosts": .file, "loop": .link("loop"), "null": .link("/dev/null")]),
    "tmp": .directory([
      "iommu": .link("/dev/iommu"), "up": .link(".."), "empty": .link("/etc/none"),
      "chain": .link("../bin/env"), "sysfs": .link("/sys"),
    ]),
    "proc": .directory([
      "self": .link("7"),
      "7": .directory([
        "cwd": .link("x"), "fd": .directory(["3": .link("x"), "4": .link("x")]),
      ]),
    ]),
  ])

  private static let viewTree = Tree.directory([
    "dev": .directory([
      "iommu": .file, "char": .directory(["10:127": .link("../iommu")]),
      "vfio": .directory(["vfio": .file], exclusive: true),
    ]),
    "sys": .directory([
      "bus": .directory([
        "pci": .directory([
          "devices": .directory(["0": .link("../../../devices/pci0/0")], exclusive: true)
        ])
      ]),
      "devices": .directory(["pci0": .directory(["0": .directory(["vendor": .file])])]),
    ]),
  ])

  private var host = TreeHost(
    tree: hostTree,
    magicLinks: [
      PathBytes(text: "/proc/7/cwd"): .place(
        PathBytes(text: "/sys/devices"), .directory, fromShadow: true),
      PathBytes(text: "/proc/7/fd/3"): .place(
        PathBytes(text: "/etc/hosts"), .other, fromShadow: false),
      PathBytes(text: "/proc/7/fd/4"): .opaque,
    ],
    mounts: ["/dev", "/sys", "/dev/shm"])

  /// - Parameter base: Where a relative path begins; with a `*` the kernel has it in the shadow.
  private func follow(
    _ text: String, from base: String = "/", root: String = "", follows: Bool = true,
    wantsName: Bool = false, resolve: UInt64 = 0
  ) -> Result<WalkResult, WalkError> {
    let view = TreeView(tree: Self.viewTree)
    var walk = PathWalk(
      host: host, view: view,
      root: WalkPosition(path: PathBytes(text: root), isInView: false),
      rules: WalkRules(followsLast: follows, wantsName: wantsName, resolve: resolve))
    return Result { () throws(WalkError) in
      try walk.follow(PathBytes(text: text)) { () throws(WalkError) in
        let path = base == "/" ? [] : PathBytes(text: base.filter { $0 != "*" })
        return (
          WalkPosition(path: path, isInView: view.contains(path)),
          fromShadow: base.hasSuffix("*")
        )
      }
    }
  }

  /// The end as text: the path, what is there, and a `!` where the kernel alone would not get there.
  private func end(_ result: Result<WalkResult, WalkError>) -> String {
    switch result {
    case .failure(let error): return "\(error.errno.rawValue)" + (error.usedView ? "!" : "")
    case .success(let result):
      let place =
        switch result.place {
        case .view: "view"
        case .host: "host"
        case .absent: "absent"
        case .opaque: "opaque"
        }
      return "\(place) \(result.path.shown)" + (result.usedView ? "!" : "")
    }
  }

  @Test(
    "What is ours, the host's and nobody's",
    arguments: [
      ("/dev/iommu", "view /dev/iommu!"), ("/dev/null", "host /dev/null"),
      ("/dev", "view /dev"), ("/sys/", "view /sys"), ("//dev//.//iommu", "view /dev/iommu!"),
      ("/dev/none", "absent /dev/none"), ("/dev/none/x", "2"), ("/dev/iommu/x", "20!"),
      ("/dev/iommu/", "20!"), ("/dev/iommu/.", "20!"), ("/dev/null/..", "20"),
      ("/dev/vfio/vfio", "view /dev/vfio/vfio!"), ("/dev/vfio/9", "absent /dev/vfio/9!"),
      ("/dev/vfio/9/x", "2!"), ("/dev/shm/file", "host /dev/shm/file"),
      ("/dev/shm/../iommu", "view /dev/iommu!"), ("/dev/char/10:127", "view /dev/iommu!"),
      ("/sys/bus", "view /sys/bus"), ("/sys/bus/usb", "host /sys/bus/usb"),
      ("/sys/bus/pci/devices/0/vendor", "view /sys/devices/pci0/0/vendor!"),
      ("/sys/bus/pci/../usb", "host /sys/bus/usb!"),
      ("/sys/bus/../only/value", "host /sys/only/value"),
      ("/sys/class/net", "host /sys/bus/usb"), ("/sys/only/none", "absent /sys/only/none"),
      ("/bin/env", "host /usr/bin/env"), ("/tmp/iommu", "view /dev/iommu!"),
      ("/tmp/up/dev/iommu", "view /dev/iommu!"), ("/tmp/sysfs/devices", "view /sys/devices"),
      ("/etc/null", "host /dev/null"), ("/dev/to-etc/hosts", "host /etc/hosts"),
      ("/../../dev/./null", "host /dev/null"), ("/", "host /"), ("/..", "host /"),
      ("/etc/loop", "40"), ("/tmp/empty", "absent /etc/none"), ("", "2"),
    ])
  func places(_ text: String, _ expected: String) {
    #expect(end(follow(text)) == expected)
  }

  @Test("A link at the end is followed or is meant itself")
  func links() {
    #expect(end(follow("/tmp/iommu", follows: false)) == "host /tmp/iommu")
    #expect(end(follow("/dev/char/10:127", follows: false)) == "view /dev/char/10:127!")
    // A slash after it follows it, but not where the name is meant.
    #expect(end(follow("/tmp/sysfs/", follows: false)) == "view /sys")
    #expect(end(follow("/tmp/sysfs/", follows: false, wantsName: true)) == "host /tmp/sysfs")
    #expect(end(follow("/tmp/none/", wantsName: true)) == "absent /tmp/none")
    #expect(end(follow("/tmp/iommu/")) == "20!")
  }

  @Test("A relative path begins where its caller is, and in the shadow only we know where")
  func relative() {
    #expect(end(follow("iommu", from: "/dev")) == "view /dev/iommu!")
    #expect(end(follow("dev/null", from: "/")) == "host /dev/null")
    #expect(end(follow("null", from: "/dev*")) == "host /dev/null!")
    #expect(end(follow("../../etc/hosts", from: "/sys/bus*")) == "host /etc/hosts!")
    #expect(end(follow("none", from: "/sys/devices/pci0*")) == "absent /sys/devices/pci0/none!")
    #expect(end(follow(".", from: "/sys/devices/pci0*")) == "view /sys/devices/pci0!")
    #expect(end(follow("/etc/hosts", from: "/dev*")) == "host /etc/hosts")
    #expect(end(follow("../../../../dev/iommu", from: "/usr/bin")) == "view /dev/iommu!")
  }

  @Test("Links of /proc lead where the kernel says they do")
  func magic() {
    #expect(end(follow("/proc/self/cwd")) == "view /sys/devices!")
    #expect(end(follow("/proc/self/cwd/pci0/0/vendor")) == "view /sys/devices/pci0/0/vendor!")
    #expect(end(follow("/proc/self/cwd/../bus/usb")) == "host /sys/bus/usb!")
    #expect(end(follow("/proc/self/cwd", follows: false)) == "host /proc/7/cwd")
    #expect(end(follow("/dev/fd/3")) == "host /etc/hosts")
    #expect(end(follow("/dev/fd/3/x")) == "20")
    #expect(end(follow("/proc/self/fd/4")) == "opaque /proc/7/fd/4")
    #expect(end(follow("/proc/self/fd/4/x/..")) == "opaque /proc/7/fd/4/x/..")
    #expect(end(follow("/dev/fd/9")) == "absent /proc/7/fd/9")
    let noMagic = WalkRules.noMagicLinks
    #expect(end(follow("/proc/self/fd/3", resolve: noMagic)) == "40")
    #expect(end(follow("/proc/self", resolve: noMagic)) == "host /proc/7")
    #expect(end(follow("/proc/self/fd/3", resolve: WalkRules.inRoot)) == "18")
  }

  @Test("openat2's rules hold among our places: ELOOP, EXDEV, another root")
  func rules() {
    let noLinks = WalkRules.noLinks
    #expect(end(follow("/dev/char/10:127", resolve: noLinks)) == "40!")
    #expect(end(follow("/dev/iommu", resolve: noLinks)) == "view /dev/iommu!")
    #expect(end(follow("/tmp/iommu", follows: false, resolve: noLinks)) == "host /tmp/iommu")
    let beneath = WalkRules.beneath
    #expect(end(follow("/dev/iommu", resolve: beneath)) == "18")
    #expect(end(follow("char/10:127", from: "/dev", resolve: beneath)) == "view /dev/iommu!")
    #expect(end(follow("10:127", from: "/dev/char*", resolve: beneath)) == "18!")
    #expect(end(follow("../iommu", from: "/dev/char*", resolve: beneath)) == "18!")
    #expect(end(follow("tmp/iommu", from: "/", resolve: beneath)) == "18")
    let inRoot = WalkRules.inRoot
    #expect(end(follow("/iommu", from: "/dev*", resolve: inRoot)) == "view /dev/iommu!")
    #expect(end(follow("../../iommu", from: "/dev*", resolve: inRoot)) == "view /dev/iommu!")
    #expect(end(follow("/to-etc/hosts", from: "/dev*", resolve: inRoot)) == "2!")
    let same = WalkRules.noCrossing
    #expect(end(follow("/dev/iommu", resolve: same)) == "18")
    #expect(end(follow("iommu", from: "/dev", resolve: same)) == "view /dev/iommu!")
    #expect(end(follow("shm/file", from: "/dev", resolve: same)) == "18")
    #expect(end(follow("to-etc/hosts", from: "/dev", resolve: same)) == "18")
  }

  @Test("A caller with another root directory finds what is in there")
  func otherRoots() {
    #expect(end(follow("/bin/env", root: "/usr")) == "host /usr/bin/env")
    #expect(end(follow("/../../bin/env", root: "/usr")) == "host /usr/bin/env")
    #expect(end(follow("/dev/iommu", root: "/usr")) == "2")
    #expect(end(follow("iommu", from: "/tmp", root: "/tmp")) == "2")
  }

  @Test("Forty links are followed, one more is ELOOP")
  func manyLinks() {
    var names: [String: Tree] = ["0": .file]
    for number in 1...41 { names["\(number)"] = .link("\(number - 1)") }
    var rig = self
    rig.host.tree = .directory(["l": .directory(names)])
    #expect(rig.end(rig.follow("/l/40")) == "host /l/0")
    #expect(rig.end(rig.follow("/l/41")) == "40")
    #expect(rig.end(rig.follow("/l/41", follows: false)) == "host /l/41")
  }

  @Test("Names of 255 bytes and paths of 4095 are the longest: ENAMETOOLONG")
  func lengths() {
    let name = String(repeating: "n", count: 255)
    #expect(end(follow("/dev/" + name)) == "absent /dev/" + name)
    #expect(end(follow("/dev/n" + name)) == "36")
    #expect(end(follow("/etc/n" + name)) == "36")
    #expect(end(follow("/dev/none/n" + name)) == "2")
    let long = String(repeating: "/", count: 4085) + "dev/iommu"
    #expect(end(follow(long)) == "view /dev/iommu!")
    #expect(end(follow("//" + long)) == "36")
  }

  @Test("Names that are no text are the host's, or nobody's")
  func bytes() {
    let view = TreeView(tree: Self.viewTree)
    var walk = PathWalk(
      host: host, view: view, root: WalkPosition(path: [], isInView: false), rules: WalkRules())
    let result = try? walk.follow(PathBytes(text: "/dev/") + [0xFF, 0xFE]) {
      () throws(WalkError) in
      throw WalkError(errno: .badFileDescriptor, usedView: false)
    }
    #expect(
      result?.place
        == .absent(
          name: [0xFF, 0xFE], in: WalkPosition(path: PathBytes(text: "/dev"), isInView: true)))
  }
}
