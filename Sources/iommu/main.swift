print("iommu")
