/*
 * QTest testcase: TCG's TLB while the memory map changes
 *
 * A guest that does nothing but write to a device's register, and read it
 * back, finds the register in its TLB all the time.  Each access must reach
 * the device, whatever is mapped and unmapped elsewhere.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci_regs.h"
#include "tcg-guest.h"

#define GOOD    0x1000
#define BAD     0x1004

/* The register of the I/O APIC must hold what was written last */
static const uint8_t code[] = {
    0x31, 0xc9,                                 /* 0:  xor  %ecx,%ecx */
    0xbe, 0x00, 0x00, 0xc0, 0xfe,               /* 2:  mov  $0xfec00000,%esi */
    0xfe, 0xc1,                                 /* 7:  inc  %cl */
    0x89, 0x0e,                                 /* 9:  mov  %ecx,(%esi) */
    0x8b, 0x06,                                 /* b:  mov  (%esi),%eax */
    0x39, 0xc1,                                 /* d:  cmp  %eax,%ecx */
    0x75, 0x08,                                 /* f:  jne  19 */
    0xff, 0x05, 0x00, 0x10, 0x00, 0x00,         /* 11: incl GOOD */
    0xeb, 0xee,                                 /* 17: jmp  7 */
    0xff, 0x05, 0x04, 0x10, 0x00, 0x00,         /* 19: incl BAD */
    0xeb, 0xe6,                                 /* 1f: jmp  7 */
};

static void pci_config(QTestState *qts, int reg, uint32_t value)
{
    qtest_outl(qts, 0xcf8, 0x80000000 | 4 << 11 | reg);
    qtest_outl(qts, 0xcfc, value);
}

static void test_memory_map(void)
{
    g_autofree char *dir = g_dir_make_tmp("tcg-memory-map-XXXXXX", NULL);
    g_autofree char *rom = g_strdup_printf("%s/rom", dir);
    QTestState *qts;
    int i;

    tcg_guest_write(rom, code, sizeof(code));
    qts = qtest_initf("-accel tcg -machine pc -nodefaults -m 16M -bios %s"
                      " -device pci-testdev,addr=4", rom);
    tcg_guest_counts(qts, GOOD);

    /* A BAR below the register: the number of the register's section changes */
    pci_config(qts, PCI_BASE_ADDRESS_0, 0xe0000000);
    for (i = 0; i < 5000; i++) {
        pci_config(qts, PCI_COMMAND, i % 2 ? 0 : PCI_COMMAND_MEMORY);
    }
    tcg_guest_counts(qts, GOOD);
    g_assert_cmpint(qtest_readl(qts, BAD), ==, 0);

    qtest_quit(qts);
    unlink(rom);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (qtest_has_accel("tcg") && qtest_has_device("pci-testdev")) {
        qtest_add_func("tcg-memory-map", test_memory_map);
    }
    return g_test_run();
}
