// SPDX-License-Identifier: Apache-2.0
//
// What programs cannot do to their /sys and /dev: files that sysfs would not let them make, write,
// move or remove, and what of it they are told. The test machine: Tests/Programs/interposer-host.

import Foundation
import Glibc
import Testing

@Suite("What of a view nobody can write", .serialized)
struct ReadOnlyViewTests {
  private static let home = "/sys/devices/test"

  /// Python with `tell(call, …)`, which prints the errno or `done`; runs in the machine's directory.
  private func python(_ script: String, as user: User) -> Outcome {
    Programs.hosted(
      [
        "python3", "-c",
        """
        import os, errno
        def tell(call, *arguments):
          try: call(*arguments)
          except OSError as error: print(errno.errorcode[error.errno])
          else: print("done")
        os.chdir("\(Self.home)")
        """ + "\n" + script,
      ], as: user)
  }

  private func bash(_ script: String, as user: User, options: [String] = []) -> Outcome {
    Programs.hosted(
      ["bash", "-c", "cd \(Self.home) || exit 99\n" + script], as: user, options: options)
  }

  /// Whether what runs as a user is the machine's root.
  private func isRoot(_ user: User) -> Bool { user == .current && getuid() == 0 }

  @Test("A file that sysfs has not is not made by an open: EACCES", arguments: User.allCases)
  func create(_ user: User) {
    let outcome = python(
      """
      before = os.listdir(".")
      new = os.O_WRONLY | os.O_CREAT
      tell(os.open, "reset", new)
      tell(os.open, "reset", new | os.O_TRUNC)
      tell(os.open, "reset", new | os.O_EXCL)
      tell(os.open, "reset", os.O_RDONLY | os.O_CREAT)
      tell(os.open, "\(Self.home)/rescan", new)
      tell(os.open, "/sys/bus/pci/devices/0000:e0:04.0/reset", new)
      tell(os.open, "../rescan", new)
      tell(os.open, "/sys/new", new)
      here = os.open(".", os.O_RDONLY)
      os.chdir("/")
      tell(lambda: os.open("remove_id", new, dir_fd=here))
      tell(os.open, "sys/new", new)
      tell(os.open, "//sys//new", new)
      tell(os.open, "/sys/../sys/class/new", new)
      tell(os.open, "\(Self.home)/none", os.O_WRONLY)
      print(os.listdir("\(Self.home)") == before, os.path.exists("/sys/new"))
      """, as: user)
    #expect(
      outcome.output == String(repeating: "EACCES\n", count: 12) + "ENOENT\nTrue False\n",
      "\(outcome)")
  }

  @Test("What only shows something cannot be opened to write: EACCES", arguments: User.allCases)
  func write(_ user: User) {
    let outcome = python(
      """
      for flags in os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, \\
          os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC:
        tell(os.open, "vendor", flags)
      tell(os.open, "/sys/bus/pci/devices/0000:e0:04.0/vendor", os.O_WRONLY)
      tell(os.open, "vendor", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
      tell(os.open, ".", os.O_WRONLY)
      tell(os.open, "vendor", os.O_RDONLY | os.O_CREAT)
      print(open("vendor").read(), end="")
      print(os.access("vendor", os.R_OK), os.access("vendor", os.W_OK))
      """, as: user)
    #expect(
      outcome.output
        == String(repeating: "EACCES\n", count: 7)
        + "EEXIST\nEISDIR\ndone\n0x8086\nTrue False\n",
      "\(outcome)")
  }

  @Test("--explain says what cannot be made and what cannot be written")
  func sentences() {
    let outcome = bash(
      "echo 1 > reset; echo 1 > vendor", as: .current, options: ["--explain"])
    #expect(
      outcome.error.contains(
        "\(Self.home)/reset: /sys has no such file, and programs cannot make one (EACCES)"),
      "\(outcome)")
    #expect(
      outcome.error.contains(
        "\(Self.home)/vendor: it shows something and takes no commands (EACCES)"), "\(outcome)")
  }

  @Test("Nothing in /sys is made, moved or removed otherwise", arguments: User.allCases)
  func change(_ user: User) {
    let outcome = python(
      """
      def tree(): return sorted(place for place in os.walk("."))
      before = tree()
      tell(os.mkdir, "new")
      tell(os.symlink, "vendor", "new")
      tell(os.link, "vendor", "new")
      tell(os.mkfifo, "new")
      tell(os.unlink, "vendor")
      tell(os.unlink, "value")
      tell(os.rename, "value", "vendor")
      tell(os.rename, "/sys/bus/pci/devices", "/sys/bus/pci/others")
      tell(os.rename, "/sys/bus/pci", "/sys/bus/others")
      tell(os.rmdir, "/sys/bus/pci/devices")
      tell(os.chmod, "vendor", 0o666)
      tell(os.truncate, "value", 0)
      tell(os.utime, "vendor")
      print(tree() == before)
      open("create", "w").write("later")
      print(os.listdir("/sys/class/test"), open("later/name").read(), end="")
      """, as: user)
    #expect(
      outcome.output == String(repeating: "EROFS\n", count: 13) + "True\n['later'] later\n",
      "\(outcome)")
  }

  @Test("Nor by one who is root in namespaces of its own", arguments: User.allCases)
  func ownNamespaces(_ user: User) {
    let outcome = bash(
      """
      \(Programs.unshare.joined(separator: " ")) bash -c '
        mount -o remount,bind,rw /sys || echo no remount
        umount -l /sys || echo no umount
        mkdir /sys/new || echo no directory
        echo 1 > vendor || echo no store
        echo inner > value; cat value
      '
      """, as: user)
    #expect(
      outcome.output == "no remount\nno umount\nno directory\nno store\ninner\n", "\(outcome)")
  }

  @Test("Attributes take commands in each way that shells write them", arguments: User.allCases)
  func commands(_ user: User) {
    let outcome = bash(
      """
      set -e
      echo a > log
      echo b >> log
      echo c | tee log > /dev/null
      echo d | tee -a log > /dev/null
      echo e | dd of=log status=none
      echo f | dd of=log conv=notrunc oflag=append status=none
      set -o noclobber; echo g >| log; set +o noclobber
      cp /dev/stdin log <<< h
      python3 -c 'open("log", "w").write("i"); open("log", "ab").write(b"j")'
      truncate -s 0 log
      [ -w log ] && [ -r log ] && [ -w create ] && test ! -x log
      link=$(mktemp -d); ln -s $PWD/log $link/other; echo k > $link/other; rm -r $link
      cat log
      """, as: user)
    #expect(
      outcome.output == "[a][b][c][d][e][f][g][h][i][j][k]\n", "\(outcome)")
    #expect(outcome.status == 0 && outcome.error == "", "\(outcome)")
  }

  @Test("access(2) says of an attribute what its permissions say", arguments: User.allCases)
  func access(_ user: User) {
    let outcome = python(
      """
      open("create", "w").write("dev")
      for name in "value", "create", "dev/name":
        print([os.access(name, way) for way in (os.F_OK, os.R_OK, os.W_OK, os.R_OK | os.W_OK, os.X_OK)])
      here = os.open(".", os.O_RDONLY)
      os.chdir("/")
      print(os.access("value", os.W_OK, dir_fd=here), os.access("\(Self.home)/value", os.W_OK),
        os.access("\(Self.home)/value", os.W_OK, effective_ids=True),
        os.access("/sys/bus/pci/devices/0000:e0:04.0/value", os.W_OK),
        os.access("/dev/iommu", os.W_OK), os.access("/dev/null", os.W_OK),
        os.access("/sys/none", os.W_OK), os.access("/tmp", os.W_OK))
      """, as: user)
    let create =
      isRoot(user) ? "[True, True, True, True, False]" : "[True, False, True, False, False]"
    let name =
      isRoot(user) ? "[True, True, True, True, False]" : "[True, True, False, False, False]"
    #expect(
      outcome.output == """
        [True, True, True, True, False]
        \(create)
        \(name)
        True True True True True True False True

        """, "\(outcome)")
  }

  @Test(
    "/dev is as writable as Linux's: for root, and /dev/shm for all", arguments: User.allCases)
  func devices(_ user: User) {
    // By paths the host's part of /dev is the host's, which is not to be changed here.
    guard Programs.view == "namespace" else { return }
    let outcome = python(
      """
      name = "/dev/shm/iommu-test-%d" % os.getpid()
      open(name, "w").write("x")
      os.unlink(name)
      before = sorted(os.listdir("/dev"))
      tell(os.open, "/dev/iommu-new", os.O_WRONLY | os.O_CREAT)
      tell(os.open, "/dev/vfio/devices/iommu-new", os.O_WRONLY | os.O_CREAT)
      tell(os.mkdir, "/dev/iommu-directory")
      tell(os.rename, "/dev/vfio/devices/vfio0", "/dev/vfio/vfio0")
      tell(os.unlink, "/dev/iommu")
      print(sorted(os.listdir("/dev")) == before)
      for name in "/dev/null", "/dev/zero": os.close(os.open(name, os.O_RDWR))
      """, as: user)
    #expect(
      outcome.output
        == (isRoot(user)
          ? "done\ndone\ndone\ndone\ndone\nFalse\n"
          : "EACCES\nEACCES\nEROFS\nEROFS\nEROFS\nTrue\n"),
      "\(outcome)")
  }

  @Test("By paths nobody can change our part of /dev, root neither", arguments: User.allCases)
  func devicesByPaths(_ user: User) {
    let outcome = Programs.hosted(
      [
        "python3", "-c",
        """
        import os, errno
        def tell(call, *arguments):
          try: call(*arguments)
          except OSError as error: print(errno.errorcode[error.errno])
          else: print("done")
        before = sorted(os.listdir("/dev")), sorted(os.listdir("/dev/vfio"))
        tell(os.open, "/dev/vfio/devices/iommu-new", os.O_WRONLY | os.O_CREAT)
        tell(os.mkdir, "/dev/vfio/iommu-directory")
        tell(os.rename, "/dev/vfio/devices/vfio0", "/dev/vfio/vfio0")
        tell(os.unlink, "/dev/iommu")
        tell(os.rmdir, "/dev/vfio/devices")
        tell(os.chmod, "/dev/iommu", 0)
        print((sorted(os.listdir("/dev")), sorted(os.listdir("/dev/vfio"))) == before)
        for name in "/dev/null", "/dev/zero", "/dev/iommu": os.close(os.open(name, os.O_RDWR))
        name = "/dev/shm/iommu-test-%d" % os.getpid()
        open(name, "w").write("x")
        os.unlink(name)
        """,
      ], as: user, options: ["--view", "paths"])
    #expect(outcome.output == "EACCES\nEROFS\nEROFS\nEROFS\nEROFS\nEROFS\nTrue\n", "\(outcome)")
    #expect(outcome.status == 0)
  }

  @Test("What root does to its /dev harms its own view only, and devices come and go")
  func devicesOfRoot() {
    guard isRoot(.current), Programs.view == "namespace" else { return }
    let outcome = bash(
      """
      echo one > create
      rm /dev/test/one; echo one > remove
      rm -r /dev/test; echo two > create; [ -c /dev/test/two ] && echo two
      mv /dev/test /dev/other; echo three > create; [ -c /dev/test/three ] && echo three
      exec 9<> /dev/other/two && echo moved
      exec 9>&-
      echo two > remove; cat /dev/other/two
      rm -r /dev/test; ln -s /etc /dev/test
      echo four > create; ls /etc/four
      rm /dev/test; mkdir -p /dev/test/five/deep; echo five > create
      [ -c /dev/test/five ] && echo five
      rm /dev/iommu; touch /dev/iommu; echo text > /dev/iommu; cat /dev/iommu
      cat five/name value
      """, as: .current)
    #expect(outcome.output == "two\nthree\nmoved\nfive\ntext\nfive\nfirst\n", "\(outcome)")
    #expect(
      outcome.error == """
        cat: /dev/other/two: No such device
        ls: cannot access '/etc/four': No such file or directory

        """, "\(outcome)")
  }
}
