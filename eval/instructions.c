/* A plugin for qemu-user: instructions that the marking thread executes between two marks.
 *
 * A mark is prctl(MARK, 1) at the beginning and prctl(MARK, 0) at the end, an option that no kernel knows. Each pair
 * appends one number to the file of the argument `out`. The declarations are those of QEMU's plugin interface, version 1
 * (docs/devel/tcg-plugins), whose header Debian's qemu-user does not bring.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MARK 0x44454341
#define PRCTL 157 /* on x86-64 */
#define MOST_VCPUS 1024

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                               uint64_t, uint64_t, uint64_t));

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t counts[MOST_VCPUS], begun[MOST_VCPUS];
static char out[4096];

static void executed(unsigned vcpu, void *instructions) {
    if (vcpu < MOST_VCPUS) counts[vcpu] += (uint64_t)(uintptr_t)instructions;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void called(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != PRCTL || a1 != MARK || vcpu >= MOST_VCPUS) return;
    if (a2) {
        begun[vcpu] = counts[vcpu];
        return;
    }
    FILE *file = fopen(out, "a");
    if (file == NULL) return;
    fprintf(file, "%llu\n", (unsigned long long)(counts[vcpu] - begun[vcpu]));
    fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info,
                                                               int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0) strncpy(out, argv[i] + 4, sizeof out - 1);
    if (out[0] == '\0') return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
