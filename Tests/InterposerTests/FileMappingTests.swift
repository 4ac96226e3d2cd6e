// SPDX-License-Identifier: Apache-2.0
//
// Mappings of a program's files in the supervisor: there is a last one.

import CSyscalls
import Glibc
import Testing

@testable import Interposer

@Suite struct FileMappingTests {
  @Test("B1: files are mapped while there is room, and again once a mapping is gone")
  func room() throws {
    let file = OwnedDescriptor(csys_memfd_create("test", 0))
    try #require(file.number >= 0 && ftruncate(file.number, 4096) == 0)
    let room = MappingRoom(2)
    let page = FileMapping.Request(offset: 0, length: 4096, writable: true, pageSize: 4096)
    var kept = [FileMapping(file.number, page, room: room)]
    kept.append(FileMapping(file.number, page, room: room))
    #expect(kept.count { $0 != nil } == 2)
    #expect(FileMapping(file.number, page, room: room) == nil)
    kept.removeLast()
    // A file that cannot be mapped takes no room.
    #expect(FileMapping(0x7FFF, page, room: room) == nil)
    #expect(FileMapping(file.number, page, room: room) != nil)
  }
}
