// SPDX-License-Identifier: Apache-2.0
//
// The shadow of /dev and /sys, beside a directory of the host that the tests change: /dev/shm.

import CSyscalls
import Glibc
import IOMMU
import LinuxABI
import Testing

@testable import Interposer

@Suite("The shadow of /dev and /sys", .serialized)
struct ShadowTreeTests {
  /// A directory of the host's in /dev that the view has too.
  private final class HostDirectory {
    let path: String

    init() {
      var template = Array("/dev/shm/iommu-test-XXXXXX".utf8CString)
      path = mkdtemp(&template).map { String(cString: $0) } ?? ""
      #expect(!path.isEmpty)
    }

    deinit { _ = Programs.run(["rm", "-r", path]) }

    func file(_ name: String) {
      close(open("\(path)/\(name)", O_WRONLY | O_CREAT | O_CLOEXEC, 0o644))
    }
    func directory(_ name: String) { mkdir("\(path)/\(name)", 0o755) }
    func link(_ name: String, to target: String) { symlink(target, "\(path)/\(name)") }
  }

  private final class Node: DeviceNode {
    let path: String
    let number = DeviceNumber(major: 10, minor: 127)
    init(_ path: String) { self.path = path }
    func open(flags: Int32, by caller: any Caller) throws(IOMMUError) -> any OpenFile {
      throw IOMMUError(.noSuchDevice, "it is never opened")
    }
  }

  private let host = HostDirectory()

  private func view(_ entries: [(String, View.Kind)]) -> View {
    View(
      entries: [View.Entry(host.path, .directory)]
        + entries.map { View.Entry("\(host.path)/\($0.0)", $0.1) })
  }

  private func shadow(
    _ entries: [(String, View.Kind)] = [], nodes: [any DeviceNode] = []
  ) throws -> ShadowTree {
    try ShadowTree(WireView(nodes: nodes, view: view(entries)))
  }

  private func entry(_ tree: ShadowTree, _ name: String) -> ShadowTree.Entry {
    tree.entry("\(host.path)/\(name)")
  }

  /// What a program finds that lists it.
  private func names(_ tree: ShadowTree) -> [String] {
    tree.refresh(host.path)
    return (System.entries(tree.real(host.path)) ?? []).map(\.name).sorted()
  }

  private func type(_ entry: ShadowTree.Entry) -> UInt32 {
    guard case .ours(let mode) = entry else { return 0 }
    return mode & S_IFMT
  }

  @Test("A directory lists what is ours and what is the host's, and knows which is which")
  func merged() throws {
    for name in ["plain", "both"] { host.file(name) }
    host.directory("below")
    host.link("link", to: "plain")
    mkfifo("\(host.path)/fifo", 0o600)
    let tree = try shadow(
      [
        ("file", .file(contents: [1, 2], mode: 0o444)), ("both", .link(target: "file")),
        ("own", .directory),
        ("own/attribute", .attribute(CommandAttribute(store: { _, _ in }))),
      ], nodes: [Node("\(host.path)/node")])
    #expect(
      names(tree)
        == ["below", "both", "fifo", "file", "link", "node", "own", "plain"])
    for name in ["plain", "below", "link", "fifo"] {
      #expect(entry(tree, name) == .hosts, "\(name)")
    }
    #expect(type(entry(tree, "file")) == S_IFREG)
    #expect(type(entry(tree, "both")) == S_IFLNK)
    #expect(type(entry(tree, "own")) == S_IFDIR)
    #expect([S_IFCHR, S_IFREG].contains(type(entry(tree, "node"))))
    #expect(type(entry(tree, "own/attribute")) == S_IFREG)
    #expect(entry(tree, "none") == .absent)
    #expect(System.contents(tree.real("\(host.path)/file")) == [1, 2])
    #expect(System.readLink(tree.real("\(host.path)/link")) == "plain")
    let types = Dictionary(
      uniqueKeysWithValues: (System.entries(tree.real(host.path)) ?? []).map {
        ($0.name, $0.type)
      })
    #expect(types["below"] == UInt8(DT_DIR) && types["link"] == UInt8(DT_LNK))
    #expect(types["fifo"] == UInt8(DT_FIFO) && types["plain"] == UInt8(DT_REG))
  }

  @Test("All of the host's /dev is there beside the view's, its nodes as nodes")
  func hostsDevices() throws {
    let tree = try shadow()
    tree.refresh("/dev")
    let names = Set((System.entries(tree.real("/dev")) ?? []).map(\.name))
    for name in ["null", "zero", "shm"] {
      #expect(names.contains(name))
      #expect(tree.entry("/dev/\(name)") == (name == "shm" ? .ours(mode: 0o40755) : .hosts))
    }
    #expect(tree.mounts.contains(try #require(System.mount(of: "/dev"))))
    #expect(tree.mounts.contains(try #require(System.mount(of: host.path))))
    #expect(!tree.mounts.contains(try #require(System.mount(of: "/proc"))))
  }

  @Test("Mounts that the view hides are known: they are not the way to what the host has there")
  func hiddenMounts() throws {
    let mount = try #require(System.mount(of: "/dev/shm"))
    try #require(mount != System.mount(of: "/dev"), "/dev/shm is no mount here")
    for kind in [View.Kind.link(target: "null"), .exclusiveDirectory] {
      let view = View(entries: [View.Entry("/dev/shm", kind)])
      #expect(try ShadowTree(WireView(nodes: [], view: view)).mounts.contains(mount))
    }
    let view = View(entries: [View.Entry("/dev/other", .link(target: "null"))])
    #expect(try !ShadowTree(WireView(nodes: [], view: view)).mounts.contains(mount))
  }

  @Test("An exclusive directory shows nothing of the host's")
  func exclusive() throws {
    host.directory("closed")
    host.file("closed/theirs")
    host.directory("open")
    host.file("open/theirs")
    let tree = try shadow([
      ("closed", .exclusiveDirectory), ("closed/ours", .file(contents: [], mode: 0o444)),
      ("open", .directory),
    ])
    for name in ["closed", "open"] { tree.refresh("\(host.path)/\(name)") }
    #expect(entry(tree, "closed/theirs") == .absent && entry(tree, "open/theirs") == .hosts)
    #expect(tree.isExclusive("\(host.path)/closed") && !tree.isExclusive("\(host.path)/open"))
    #expect(!tree.isExclusive("/dev") && !tree.isExclusive("/proc"))
    #expect(tree.hostsType("\(host.path)/closed/theirs") == nil)
    #expect(tree.hostsType("\(host.path)/open/theirs") == S_IFREG)
    #expect(tree.hostsType("\(host.path)/open") == nil && tree.hostsType("/proc/self") == nil)
  }

  @Test("C1: what the host has below /dev/vfio are real devices, and none of it is shown")
  func nodesOfTheHost() throws {
    let trees = try ViewTree.roots(
      of: WireView(nodes: [Node("/dev/vfio/devices/vfio0")], view: View()))
    guard case .directory(let dev, false)? = trees["dev"],
      case .directory(let vfio, true)? = dev["vfio"],
      case .directory(_, let isExclusive)? = vfio["devices"]
    else {
      Issue.record("the tree is another: \(trees)")
      return
    }
    #expect(isExclusive)
  }

  @Test("Shown paths and real ones are each other's inverse")
  func paths() throws {
    let tree = try shadow()
    for path in ["/dev", host.path, "/dev/a/b"] { #expect(tree.shown(tree.real(path)) == path) }
    for path in [
      tree.path, tree.path + "/dev", tree.path + "/dev/staging/1", tree.path + "/proc/view",
      tree.path + "x/dev/view", "/dev", "",
    ] { #expect(tree.shown(path) == nil, "\(path)") }
  }

  @Test("Directories of the view are told from the host's, from links and from files")
  func directories() throws {
    host.directory("below")
    let tree = try shadow([
      ("own", .directory), ("link", .link(target: "own")),
      ("file", .file(contents: [], mode: 0o444)),
    ])
    for path in ["/dev", host.path, "\(host.path)/own"] {
      #expect(tree.contains(path), "\(path)")
    }
    for name in ["below", "link", "file", "none", "link/none"] {
      #expect(!tree.contains("\(host.path)/\(name)"), "\(name)")
    }
    for path in ["/", "/proc", "/sys"] { #expect(!tree.contains(path), "\(path)") }
  }

  @Test("A refreshed directory lists what the host has by then")
  func refresh() throws {
    for name in ["stays", "goes", "turns"] { host.file(name) }
    host.link("link", to: "stays")
    host.directory("left")
    let tree = try shadow([("ours", .directory), ("kept", .file(contents: [], mode: 0o444))])
    #expect(names(tree) == ["goes", "kept", "left", "link", "ours", "stays", "turns"])
    for name in ["goes", "turns"] { unlink("\(host.path)/\(name)") }
    unlink("\(host.path)/link")
    rmdir("\(host.path)/left")
    host.directory("turns")
    host.link("link", to: "new")
    host.file("new")
    host.file("kept")
    #expect(entry(tree, "new") == .absent && entry(tree, "goes") == .hosts)
    #expect(names(tree) == ["kept", "link", "new", "ours", "stays", "turns"])
    for name in ["link", "new", "stays", "turns"] {
      #expect(entry(tree, name) == .hosts, "\(name)")
    }
    #expect(type(entry(tree, "ours")) == S_IFDIR && type(entry(tree, "kept")) == S_IFREG)
    #expect(System.readLink(tree.real("\(host.path)/link")) == "new")
    var status = stat()
    #expect(lstat(tree.real("\(host.path)/turns"), &status) == 0)
    #expect(status.st_mode == S_IFDIR)
  }

  @Test("J2: devices come and go in a shadow, over what the host has there")
  func liveChanges() throws {
    host.file("taken")
    host.directory("theirs")
    let tree = try shadow()
    let table = try NodeTable(
      [], threadNodes: [], view: View(), root: "", fileSystems: tree.roots, shadow: tree)
    let mount = LiveMount(tree.roots, table, shadow: tree)
    let (node, taken) = (Node("\(host.path)/new/node"), Node("\(host.path)/taken"))
    // Whether somebody has listed it or not.
    func refuses() {
      for name in ["theirs/node", "theirs/deep/node", "taken/node"] {
        let change = View.Change(addedNodes: [Node("\(host.path)/\(name)")])
        #expect(throws: IOMMUError.self, "\(name)") { try mount.carry(change) }
      }
    }
    refuses()
    try mount.carry(
      View.Change(
        added: [
          View.Entry("\(host.path)/new", .directory),
          View.Entry("\(host.path)/new/value", .file(contents: [7], mode: 0o444)),
        ], addedNodes: [node, taken]))
    func place(_ path: String) -> String? {
      let file = OwnedDescriptor(System.open(tree.real(path), System.pathOnly | O_NOFOLLOW))
      return table.place(file.number)?.path
    }
    #expect(place(node.path) == node.path && place(taken.path) == taken.path)
    #expect(System.contents(tree.real("\(host.path)/new/value")) == [7])
    #expect(tree.isExclusive("\(host.path)/new"))
    #expect(names(tree) == ["new", "taken", "theirs"] && place(taken.path) == taken.path)

    try mount.carry(View.Change(removed: ["\(host.path)/new", taken.path]))
    #expect(entry(tree, "new") == .absent && entry(tree, "taken") == .absent)
    #expect(names(tree) == ["taken", "theirs"] && entry(tree, "taken") == .hosts)
    refuses()
  }

  @Test("J2: while directories are brought up to date no device is lost or left")
  func liveChangesOfManyThreads() throws {
    let tree = try shadow()
    let table = try NodeTable(
      [], threadNodes: [], view: View(), root: "", fileSystems: tree.roots, shadow: tree)
    let mount = LiveMount(tree.roots, table, shadow: tree)
    let home = host.path
    let isOver = Guarded(false)
    let refreshing = Guarded(2)
    for _ in 0..<2 {
      let isStarted = System.startThread {
        while !isOver.withLock({ $0 }) { tree.refresh(home) }
        refreshing.withLock { $0 -= 1 }
      }
      try #require(isStarted)
    }
    for round in 0..<200 {
      // The host has the same name at times: each is a placeholder in the way of the other.
      if round % 3 == 0 { host.file("node") } else { unlink("\(home)/node") }
      try mount.carry(View.Change(addedNodes: [Node("\(home)/node")]))
      #expect(entry(tree, "node") != .hosts && entry(tree, "node") != .absent)
      try mount.carry(View.Change(removed: ["\(home)/node"]))
    }
    unlink("\(home)/node")
    isOver.withLock { $0 = true }
    while refreshing.withLock({ $0 }) > 0 { usleep(100) }
    tree.refresh(home)
    #expect(names(tree) == [])
    #expect(System.entries("\(tree.path)/dev/staging")?.isEmpty == true)
  }

  @Test("A shadow goes with its owner, whole")
  func removal() throws {
    host.directory("below")
    var tree: ShadowTree? = try shadow([("own", .directory)])
    let first = try #require(tree?.path)
    #expect(access(first, F_OK) == 0)
    tree = nil
    #expect(access(first, F_OK) != 0)
    let second = try shadow([("own", .directory)])
    second.remove()
    #expect(access(second.path, F_OK) != 0)
    second.remove()
  }

  @Test("What a killed supervisor left is deleted by the next; what is in use stays")
  func sweep() throws {
    let home = host.path
    let left = home + "/iommu-view-abcdef"
    for path in ["", "/dev", "/dev/view", "/dev/view/own"] { mkdir(left + path, 0o755) }
    mkdir(left + "/dev/view/theirs", 0)
    host.file("iommu-view-abcdef/dev/view/own/file")
    symlink("/etc", left + "/dev/view/own/link")
    host.directory("another")
    let first = try ShadowPlace(in: [home])
    #expect(access(left, F_OK) != 0)
    #expect(access(first.path, F_OK) == 0 && access("/etc/passwd", F_OK) == 0)
    let second = try ShadowPlace(in: [home])
    #expect(access(first.path, F_OK) == 0 && first.path != second.path)
    #expect(access(home + "/another", F_OK) == 0)
  }

  @Test("It lies in the first directory that allows it; where none does the sentence says why")
  func candidates() throws {
    let place = try ShadowPlace(in: ["/proc", "no/path", "/nonexistent", host.path])
    #expect(place.path.hasPrefix(host.path + "/iommu-view-"))
    var status = stat()
    #expect(lstat(place.path, &status) == 0)
    #expect(status.st_mode & 0o7777 == (geteuid() == 0 ? 0o711 : 0o700))
    do {
      _ = try ShadowPlace(in: ["/proc", "no/path", "/nonexistent"])
      Issue.record("one of these allowed it")
    } catch {
      for part in [
        "/proc: No such file or directory", "no/path: it is no absolute path",
        "/nonexistent: No such file", "let /dev/shm, TMPDIR or /tmp be a local file system",
      ] { #expect(error.description.contains(part), "\(error)") }
    }
  }
}
