/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From reset to C, in long mode at CPL 3.
 *
 * The image is the machine's firmware: 64 KiB that end at 4 GiB. It begins in
 * real mode at its last 16 bytes, and copies itself to 64 KiB, for which it is
 * linked. The other CPU begins in the copy, where the SIPI sends it. Nothing of
 * CPL 0 is left running: no interrupts, no exceptions; a fault ends the VM.
 */
#define IMAGE		0x10000
#define ROM		0xffff0000
#define IN_ROM(sym)	((sym) - IMAGE + ROM)

#define CODE32		0x08
#define CODE64		0x10
#define USER_DATA	0x1b
#define USER_CODE	0x23

#define CR0_PE		(1 << 0)
#define CR0_PG		(1 << 31)
#define CR4_PAE		(1 << 5)
#define MSR_EFER	0xc0000080
#define EFER_LME	(1 << 8)
/* Interrupts off, ports open to CPL 3 */
#define RFLAGS_USER	0x3002
/* Present, writable, of the user, accessed, dirty: a table; a page of 2 MiB */
#define TABLE		0x67
#define LARGE		0xe7
#define NR_GIB		5

#define STACK_SHIFT	14

	.section .start, "ax"
	.globl	entry
	.code16
entry:
	lgdtl	%cs:(gdt_pointer - entry)
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$CODE32, $IN_ROM(start32)

	.code32
start32:
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$IN_ROM(level4), %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$CR0_PG, %eax
	movl	%eax, %cr0
	ljmpl	$CODE64, $IN_ROM(start64)

	.code64
start64:
	movl	$USER_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	$stacks, %esp
	pushq	$USER_DATA
	pushq	$stacks
	pushq	$RFLAGS_USER
	pushq	$USER_CODE
	movl	$IN_ROM(user), %eax
	pushq	%rax
	iretq

user:
	movl	$1, %ebx
	lock xaddl %ebx, nr_started
	testl	%ebx, %ebx
	jnz	1f
	movl	$ROM, %esi
	movl	$IMAGE, %edi
	movl	$(0x10000 / 8), %ecx
	rep movsq
1:	leal	1(%rbx), %esp
	shll	$STACK_SHIFT, %esp
	addl	$stacks, %esp
	movl	%ebx, %edi
	movl	$guest_main, %eax
	call	*%rax

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* CODE32 */
	.quad	0x00af9b000000ffff	/* CODE64 */
	.quad	0x00cff3000000ffff	/* USER_DATA */
	.quad	0x00affb000000ffff	/* USER_CODE */
gdt_pointer:
	.word	. - gdt - 1
	.long	IN_ROM(gdt)

	/* Memory is mapped as it is, and the user's. */
	.balign	4096
level4:
	.quad	IN_ROM(level3) + TABLE
	.balign	4096
level3:
	.set	nr, 0
	.rept	NR_GIB
	.quad	IN_ROM(level2) + (nr << 12) + TABLE
	.set	nr, nr + 1
	.endr
	.balign	4096
level2:
	.set	nr, 0
	.rept	NR_GIB << 9
	.quad	(nr << 21) + LARGE
	.set	nr, nr + 1
	.endr

	/* At 0xfff0: a jump to 0, where the image begins */
	.section .reset, "ax"
	.byte	0xe9
	.word	0x10000 - 0xfff3

	.bss
	.balign	16
	.skip	64
stacks:
	.skip	2 << STACK_SHIFT
nr_started:
	.long	0

	.section .note.GNU-stack, "", @progbits
