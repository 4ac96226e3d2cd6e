// SPDX-License-Identifier: Apache-2.0
//
// The switches of every family of formats, at random.

import FuzzSupport

@testable import PageTables

protocol RandomConfiguration: TableConfiguration {
  static func random(_ random: inout Random) -> Self
}

extension X86Switches: RandomConfiguration {
  static func random(_ random: inout Random) -> X86Switches {
    X86Switches(
      writeProtects: random.bool(), noExecute: random.bool(),
      preventsSupervisorExecution: random.bool(), extendedAccess: random.bool(),
      physicalBits: [39, 46, 52].randomElement(using: &random)!)
  }
}

extension UpdateSwitch: RandomConfiguration {
  static func random(_ random: inout Random) -> UpdateSwitch {
    UpdateSwitch(updates: random.bool())
  }
}

extension RISCVSwitches: RandomConfiguration {
  static func random(_ random: inout Random) -> RISCVSwitches {
    RISCVSwitches(
      updates: random.bool(), memoryTypes: random.bool(), supervisorUserAccess: random.bool())
  }
}

extension ArmConfiguration {
  fileprivate static func arm(_ random: inout Random) -> Self {
    var switches = Self(
      updatesAccessFlag: random.bool(), updatesDirtyState: random.bool(),
      outputBits: [36, 48, 52].randomElement(using: &random)!)
    switches.ignoresAccessFlag = random.bool()
    return switches
  }
}

extension ArmStage1Switches: RandomConfiguration {
  static func random(_ random: inout Random) -> ArmStage1Switches {
    var switches = arm(&random)
    switches.neverExecutesWritable = random.bool()
    switches.ignoresTablePermissions = random.bool()
    switches.preventsPrivilegedAccess = random.bool()
    return switches
  }
}

extension ArmStage2Switches: RandomConfiguration {
  static func random(_ random: inout Random) -> ArmStage2Switches {
    var switches = arm(&random)
    switches.distinguishesExecution = random.bool()
    return switches
  }
}
