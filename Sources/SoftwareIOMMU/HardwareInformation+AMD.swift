// SPDX-License-Identifier: Apache-2.0
//
// What the registers of AMD's IOMMU say of a configuration: AMD I/O Virtualization Technology
// (48882), MMIO offsets 0030h (extended feature register) and 01A0h (extended feature 2 register).

import HardwareTables

extension SoftwareIOMMU.Configuration {
  /// What the tables and commands of AMD's IOMMU are checked against.
  var amdCapabilities: AMDCapabilities { amdInformation.capabilities }

  var amdInformation: AMDHardwareInformation {
    AMDHardwareInformation(efr: extendedFeatureRegister, efr2: secondFeatureRegister)
  }

  /// AMD extended feature register. XTSup, GASup, HESup, PCSup, DevTblSegSup and all that concerns
  /// interrupts of guests and encrypted memory are clear.
  var extendedFeatureRegister: UInt64 {
    guard architecture == .amd else { return 0 }
    var register: UInt64 = .bit(1, pageRequests)  // PPRSup
    register |= .bit(6)  // IASup: INVALIDATE_IOMMU_ALL
    register |= .field(min(max(levels, 4), 6) - 4, at: 10)  // HATS: 4, 5 or 6 levels
    if hasFirstStage {
      register |= .bit(3)  // NXSup: guest tables withhold execution
      register |= .bit(4)  // GTSup
      register |= .field(levels > 4 ? 1 : 0, at: 12)  // GATS: 4 or 5 levels
      register |= .field(2, at: 14)  // GLXSup: GCR3 tables of up to 3 levels
      // PASmax: the width, less one. It cannot say that there are none.
      register |= .field(max(pasidBits, 1) - 1, at: 32)
      register |= .bit(37)  // USSup: guest tables know privilege
      register |= .bit(48)  // GIOSup: guest tables for requests without PASID
    }
    register |= .bit(49, tracksDirty)  // HASup: accessed bits in host tables
    register |= .bit(50, pageRequests)  // EPHSup
    register |= .bit(52, tracksDirty)  // HDSup: dirty bits in host tables
    return register
  }

  /// AMD extended feature 2 register.
  var secondFeatureRegister: UInt64 {
    guard architecture == .amd else { return 0 }
    // GCR3TRPMode: the GCR3 table's address is the guest's, translated by the host's table.
    return .bit(3, nests)
  }
}
