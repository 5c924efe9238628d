"""What devices compute in a second at most, by the names that they report."""

from __future__ import annotations

import re

# In units of 1e12 operations a second. Of several rows that fit the first counts: variants stand before the rule.
# Where the sheet states only the figure with 2:4 sparsity, which training does not have, half of it is here.
_PEAKS = (
    # Blackwell: NVIDIA's pages of GB200 NVL72 (360e15 sparse on 72) and HGX B200 (36e15 sparse on 8).
    (r"\bGB200\b", 2500),
    (r"\bB200\b", 2250),
    # Hopper: H100, H200 and GH200 data sheets. NVL are cards, of fewer clocks than the modules.
    (r"\bH100 NVL\b|\bH200 NVL\b", 835.5),
    (r"\bH(100|800)\b.*PCIe", 756.5),
    (r"\bG?H(100|200|800)\b", 989.5),
    # Ampere: A100, A30, A10 and A40 data sheets; A10G: the one that Amazon publishes for its G5.
    (r"\bA(100|800)\b", 312),
    (r"\bA30\b", 165),
    (r"\bA40\b", 149.7),
    (r"\bA10G\b", 70),
    (r"\bA10\b", 125),
    # Ada: L4, L40 and L40S data sheets.
    (r"\bL40S\b", 362),
    (r"\bL40\b", 181),
    (r"\bL4\b", 121),
    # Volta and Turing: V100, V100S and T4 data sheets.
    (r"\bV100S\b", 130),
    (r"\bV100\b.*PCIE", 112),
    (r"\bV100\b", 125),
    (r"\bT4\b", 65),
    # Cards: white papers of AD102 and GA102, with sums in float32, which are half as fast as those in float16 there.
    (r"\bRTX 6000 Ada\b", 364.2),
    (r"\bRTX 4090$", 165.2),
    (r"\bRTX A6000\b", 154.8),
    (r"\bRTX 3090 Ti$", 80),
    (r"\bRTX 3090$", 71),
    # CDNA 3: AMD's MI300X data sheet.
    (r"\bMI300X\b", 1307.4),
)
# A part of a device, or a card of a notebook at its maker's clocks: no sheet knows what it has.
_UNKNOWN = re.compile(r"\bMIG\b|\bLaptop\b|\bMax-Q\b")


def peak_flops(names: list[str]) -> float | None:
    """What devices of these names compute together in a second at most; None if one is not known.

    Floating-point operations of dense products of float16 or bfloat16, summed up in float32, as the makers' public data
    sheets state them: a multiplication and an addition are two, and sparsity is not counted in. In float32 devices do
    much less.

    >>> peak_flops(["NVIDIA A100-SXM4-40GB"] * 2)
    624000000000000.0
    >>> peak_flops(["cpu"]) is None, peak_flops(["NVIDIA A100-SXM4-40GB MIG 1g.5gb"]) is None
    (True, True)
    """
    peaks = [_peak(name) for name in names]
    return sum(peak for peak in peaks if peak) if peaks and all(peaks) else None


def _peak(name: str) -> float | None:
    if _UNKNOWN.search(name):
        return None
    return next((1e12 * tera for pattern, tera in _PEAKS if re.search(pattern, name.strip())), None)
