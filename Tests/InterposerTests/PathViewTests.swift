// SPDX-License-Identifier: Apache-2.0
//
// /dev and /sys without a mount namespace (MODEL J1): calls that take paths, answered by the supervisor.
// The test machine: Tests/Programs/interposer-host.

import Glibc
import Testing

@Suite("A view by paths", .serialized)
struct PathViewTests {
  private func client(_ test: String, as user: User, view: String = "paths") -> Outcome {
    Programs.client([test], as: user, options: ["--view", view])
  }

  /// Where there is no mount namespace to be had, asking for one says so.
  private func expectPass(_ outcome: Outcome, view: String) {
    if view == "paths" || Programs.hasMounts {
      #expect(outcome.status == 0, "\(outcome)")
    } else {
      #expect(outcome.status == 125 && outcome.error.contains(Programs.refusal), "\(outcome)")
    }
  }

  private func bash(
    _ script: String, as user: User = .current, options: [String] = []
  ) -> Outcome {
    Programs.hosted(["bash", "-c", script], as: user, options: ["--view", "paths"] + options)
  }

  @Test(
    "J1: directories, links and attributes are walked through by descriptors, in each view",
    arguments: User.allCases, ["paths", "namespace"])
  func walk(_ user: User, _ view: String) {
    expectPass(client("view-walk", as: user, view: view), view: view)
  }

  @Test(
    "J1: a current directory of ours is one for paths, programs and getcwd, in each view",
    arguments: User.allCases, ["paths", "namespace"])
  func current(_ user: User, _ view: String) {
    expectPass(client("view-current", as: user, view: view), view: view)
  }

  @Test(
    "J1: what cannot be done fails with the same errno in each view",
    arguments: User.allCases, ["paths", "namespace"])
  func errors(_ user: User, _ view: String) {
    expectPass(client("view-errors", as: user, view: view), view: view)
  }

  @Test(
    "J1: sockets are bound and found by relative paths from directories of ours, in each view",
    arguments: User.allCases, ["paths", "namespace"])
  func sockets(_ user: User, _ view: String) {
    expectPass(client("view-sockets", as: user, view: view), view: view)
  }

  @Test(
    "J1: who walks through all of /dev is not led around in the shadow, and cannot spoil it")
  func shadowsHome() {
    let outcome = bash(
      """
      # Others' are directories: they come and go, and are theirs.
      for d in /dev/shm/iommu-view-*; do test -d $d || ! test -e $d || own=$d; done
      find /dev -ignore_readdir_race -path '/dev/shm/*' ! -path "$own*" -prune -o -path "$own/*" -print \
        -o -path $own -exec echo walked ';'
      (ls $own/dev; cat $own/dev/view/iommu; rm -r $own; cd $own; mv $own $own.away; touch $own/x
        cd /dev/shm; rm -rf ${own##*/}) 2>&1 | sed 's/^.*: //' | sort -u
      test -c /dev/iommu && cat /sys/devices/test/vendor
      """)
    #expect(outcome.output.hasPrefix("walked\n"), "\(outcome)")
    #expect(outcome.output.contains("Permission denied\n"), "\(outcome)")
    #expect(outcome.output.hasSuffix("\n0x8086\n"), "\(outcome)")
  }

  @Test(
    "J1: terminals are opened, in each view", arguments: User.allCases, ["paths", "namespace"])
  func terminals(_ user: User, _ view: String) {
    let script = """
      import os
      m, s = os.openpty()
      os.write(s, b"x")
      print(os.read(m, 1), os.ttyname(s).startswith("/dev/pts/"))
      """
    let outcome = Programs.hosted(
      ["python3", "-c", script], as: user, options: ["--view", view])
    #expect(
      outcome.output == "b'x' True\n" || view == "namespace" && !Programs.hasMounts,
      "\(outcome)")
  }

  @Test("J1: a directory lists the host's block devices as such")
  func types() {
    let outcome = bash(
      """
      listed=$(find /dev -maxdepth 1 -type b | wc -l)
      there=$(for f in /dev/*; do test -L $f || ! test -b $f || echo; done | wc -l)
      test $listed = $there && echo same
      """)
    // Ordinary users can make no block node to stand for one.
    #expect(outcome.output == "same\n" || getuid() != 0, "\(outcome)")
  }

  @Test("J1: of a program that cannot be looked into it is said that it finds the host's files")
  func unseen() {
    let outcome = client("view-unseen", as: .nobody)
    #expect(outcome.status == 0, "\(outcome)")
    #expect(
      outcome.error.contains("does not allow to be looked at") || getuid() != 0, "\(outcome)")
  }

  @Test("J1: a shadow that does not fit in one place is made in the next")
  func fullPlace() {
    guard getuid() == 0, Programs.hasMounts else { return }
    let outcome = Programs.run([
      "unshare", "-m", "bash", "-c",
      """
      mount -t tmpfs -o nr_inodes=24 none /dev/shm && "$0" --view paths -- cat /sys/devices/test/vendor
      ls -A /dev/shm
      """, Programs.host,
    ])
    #expect(outcome.output == "0x8086\n", "\(outcome)")
  }

  @Test("J1: nothing is mounted on what the shadow lies in, but by who has mounts of its own")
  func hiddenShadow() {
    guard getuid() == 0, Programs.hasMounts else { return }
    let outcome = Programs.run([
      "unshare", "-m", Programs.host, "--view", "paths", "--", "bash", "-c",
      """
      mount -t tmpfs none /dev/shm 2>/dev/null || echo busy
      cd /dev && mount -t tmpfs none shm 2>/dev/null || echo busy
      unshare -m sh -c 'mount -t tmpfs none /dev/shm && cat /sys/devices/test/vendor'
      cat /sys/devices/test/vendor; cd /sys/devices/test && cat vendor
      """,
    ])
    #expect(outcome.output == "busy\nbusy\n0x8086\n0x8086\n0x8086\n", "\(outcome)")
  }

  @Test("J1: who deletes all temporary files does not delete the shadow among them")
  func temporaryShadow() {
    guard getuid() == 0, Programs.hasMounts else { return }
    let outcome = Programs.run([
      "unshare", "-m", "bash", "-c",
      """
      mount -t tmpfs -o ro none /dev/shm; export TMPDIR=$(mktemp -d)
      "$0" --view paths -- bash -c 'touch $TMPDIR/x; ln -s $TMPDIR $TMPDIR/y
        rm -rf $TMPDIR/y/* $TMPDIR/* 2>/dev/null
        test -e $TMPDIR/x && echo there; cat /sys/devices/test/vendor'
      rmdir $TMPDIR && echo gone
      """, Programs.host,
    ])
    #expect(outcome.output == "0x8086\ngone\n", "\(outcome)")
  }

  @Test("J1: inotify tells of what comes", arguments: User.allCases)
  func watch(_ user: User) {
    let outcome = client("view-watch", as: user)
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test("J1: threads look, open and list at once", arguments: User.allCases)
  func threads(_ user: User) {
    let outcome = client("view-threads", as: user)
    #expect(outcome.status == 0, "\(outcome)")
  }

  @Test("J1: a shell lists, finds, enters and reads", arguments: User.allCases)
  func shell(_ user: User) {
    let outcome = bash(
      """
      cd /sys/bus/pci/devices/0000:e0:04.0 && pwd && pwd -P && cat vendor
      ls | sort | tr '\\n' ' '; echo
      find /sys/devices/test | sort | tr '\\n' ' '; echo
      cd -P .; pwd; cat ../test/value; cat ../../../etc/passwd | head -c 5; echo
      readlink -f ../../bus/pci/devices/0000:e0:04.0/vendor
      ls -l /dev/iommu | cut -c1-10; test -c /dev/iommu && test -d /sys/bus/pci && echo there
      test -e /dev/none || test -e /sys/none || echo none
      ls -d /dev/null /dev/iommu /dev/vfio; ls /dev | grep -c -x -e iommu -e null
      cd /dev; echo x > null && ../bin/cat /proc/self/comm; cd shm && pwd
      echo hello > /sys/devices/test/log; cat /sys/devices/test/log
      """, as: user)
    #expect(
      outcome.output == """
        /sys/bus/pci/devices/0000:e0:04.0
        /sys/devices/test
        0x8086
        create log remove value vendor\u{20}
        /sys/devices/test /sys/devices/test/create /sys/devices/test/log \
        /sys/devices/test/remove /sys/devices/test/value /sys/devices/test/vendor\u{20}
        /sys/devices/test
        first
        root:
        /sys/devices/test/vendor
        crw-rw-rw-
        there
        none
        /dev/iommu
        /dev/null
        /dev/vfio
        2
        cat
        /dev/shm
        [hello]

        """, "\(outcome)")
    #expect(outcome.error == "" || User.current != user, "\(outcome)")
  }

  @Test("J1: links from elsewhere lead to what is ours, and out of it again")
  func links() {
    let outcome = bash(
      """
      d=$(mktemp -d); cd $d; mkdir deep
      ln -s /dev/iommu node; ln -s /sys/bus/pci devices; ln -s ../../../sys deep/up
      ln -s /sys/none dangling; ln -s $d/node again
      test -c node && test -c again && test -r again && cat devices/devices/*/vendor
      test -e dangling || readlink dangling
      cat devices/../../devices/test/vendor
      cat devices/devices/0000:e0:04.0/../../../etc/../etc/passwd 2>/dev/null | head -c 4; echo
      ls devices/
      rm -r $d; test -e /dev/iommu && echo kept
      """)
    #expect(
      outcome.output.hasPrefix("0x8086\n/sys/none\n0x8086\n")
        && outcome.output.contains("devices\n") && outcome.output.hasSuffix("kept\n"),
      "\(outcome)")
  }

  @Test("J1: one who has another root directory, or mounts of its own, finds what lies there")
  func otherRoots() {
    guard getuid() == 0 else { return }
    let outcome = bash(
      """
      \(Programs.unshare.isEmpty ? "" : "unshare -m") bash -c 'cat /sys/devices/test/vendor; cd /sys/devices && pwd -P && cat test/vendor
        test -c /dev/iommu && test -f ../etc/../../etc/passwd || test -f ../../etc/passwd && echo there'
      d=$(mktemp -d); mkdir $d/in
      python3 - $d $(stat -c %i /) <<'END'
      import os, sys
      home = os.open("/sys/devices/test", os.O_RDONLY)
      try: os.chroot("/sys")
      except OSError as error: print(error.errno)
      os.chroot(sys.argv[1])
      print(os.listdir("/"), os.path.exists("/dev/iommu"), os.path.exists("/sys"))
      print(os.read(os.open("vendor", os.O_RDONLY, dir_fd=home), 9))
      os.chdir("/in"); print(os.getcwd(), os.path.exists("../../dev/iommu"))
      # From there the way leads out, and in again.
      print(os.read(os.open("../../../etc/passwd", os.O_RDONLY, dir_fd=home), 5))
      print(os.stat("../../..", dir_fd=home).st_ino == int(sys.argv[2]))
      os.mkdir("../../.." + sys.argv[1] + "/made", dir_fd=home)
      os.mkdir("../../.." + sys.argv[1] + ".out", dir_fd=home)
      print(sorted(os.listdir("/")))
      os.fchdir(home); os.chdir("..")
      print(os.path.exists("test/vendor"), os.path.exists("../../dev/iommu"))
      END
      rmdir $d.out && rm -r $d
      """)
    #expect(
      outcome.output == """
        0x8086
        /sys/devices
        0x8086
        there
        1
        ['in'] False False
        b'0x8086\\n'
        /in False
        b'root:'
        True
        ['in', 'made']
        True True

        """, "\(outcome)")
  }

  @Test(
    "J1: one who has given up being root sees what it may of the host, from our directories too"
  )
  func otherUsers() {
    guard getuid() == 0 else { return }
    let outcome = bash(
      """
      d=$(mktemp -d); touch $d/x; chmod 700 $d; umask 022; echo open > $d.open
      setpriv --reuid=65534 --regid=65534 --clear-groups bash -c '
        cd /sys/devices/test && cat vendor
        cat ../../..'$d.open'
        stat ../../..'$d'/x; stat ../../..'$d'/none; cat ../../..'$d'/none
        test -r ../../../etc/shadow || echo closed
      ' 2>&1 | sed 's/^.*: //'
      rm -r $d $d.open
      """)
    #expect(
      outcome.output == """
        0x8086
        open
        Permission denied
        Permission denied
        Permission denied
        closed

        """, "\(outcome)")
  }

  @Test("--explain says why the view cannot be changed, and nothing of what is only not there")
  func sentences() {
    let outcome = bash(
      "mkdir /sys/devices/x; stat /dev/none; readlink /sys/bus; ls -l /sys/devices/test >/dev/null; exit 0",
      options: ["--explain"])
    let lines = outcome.error.split(separator: "\n").filter { $0.hasPrefix("iommu: ") }
    #expect(
      lines.count == 2
        && lines.last == """
          iommu: mkdir: /sys/devices/x: programs cannot change the machine's view (EROFS)
          """,
      "\(outcome)")
  }
}
