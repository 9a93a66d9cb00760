# SPDX-License-Identifier: Apache-2.0
# tests/: one entry a line.
# Programs that cmocka runs, each from the .c of its name.
UNIT_TESTS = \
	tests/unit_archive \
	tests/unit_cache \
	tests/unit_cli \
	tests/unit_coding \
	tests/unit_direct \
	tests/unit_dirty \
	tests/unit_gpu \
	tests/unit_gpu_emul \
	tests/unit_gpu_encode \
	tests/unit_gpu_fallback \
	tests/unit_lib \
	tests/unit_model \
	tests/unit_quant \
	tests/unit_quant_search \
	tests/unit_parity \
	tests/unit_rans \
	tests/unit_shrink \
	tests/unit_memory \
	tests/unit_slab \
	tests/unit_stream \
	tests/unit_policy \
	tests/unit_safetensors
# Fuzz targets, which replay their corpora; without cmocka.
FUZZ_TESTS = \
	tests/fuzz_archive \
	tests/fuzz_chunk \
	tests/fuzz_safetensors
# Opens and reads archives whatever their checksums say, with its own build of that.
tests_fuzz_archive_CPPFLAGS = $(AM_CPPFLAGS) -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
tests_fuzz_archive_SOURCES = \
	tests/fuzz_archive.c \
	codec/archive_index.c \
	codec/archive_read.c
# Programs of `make bench`, each from the .c of its name.
EQ_BENCHES = \
	tests/bench_quant \
	tests/bench_codec
# Scripts that `make check` runs (.sh by sh, .py by $(EQFS_PYTHON)).
SCRIPT_TESTS = \
	tests/check_includes.sh \
	tests/mount_hostile.py \
	tests/mount_life.py \
	tests/mount_limits.py \
	tests/mount_lossy.py \
	tests/entropy.py \
	tests/ref_decode.py \
	tests/cli_damage.sh \
	tests/cli_diff.sh \
	tests/cli_errors.sh \
	tests/cli_help.py \
	tests/cli_pack.sh \
	tests/cli_ratios.sh \
	tests/cli_repo.sh \
	tests/cli_signal.sh \
	tests/check_headers.py \
	tests/eqar_fault.py \
	tests/eqar_memory.py \
	tests/eqar_peak.py \
	tests/mount_clients.py \
	tests/mount_crash.py \
	tests/mount_device.py \
	tests/mount_fault.py \
	tests/mount_gpu.py \
	tests/mount_meanwhile.py \
	tests/mount_model.py \
	tests/mount_names.py \
	tests/mount_options.py \
	tests/mount_pass.py \
	tests/mount_posix.py \
	tests/mount_python.py \
	tests/mount_random.py \
	tests/mount_stats.py \
	tests/mount_systemd.py \
	tests/mount_torch.py \
	tests/neon.sh \
	tests/python_load.py
# What those need beside them: libraries, generators, fixtures.
TEST_FILES = \
	tests/bench_gpu_mount.py \
	tests/bench_load.py \
	tests/bench_fuse.c \
	tests/bench_disk.py \
	tests/bench_mount.py \
	tests/bench_peers.py \
	tests/bench_read.py \
	tests/eqar_ref.py \
	tests/gen_archives.py \
	tests/requirements.txt \
	tests/data \
	tests/cgroup_lib.py \
	tests/cli_lib.sh \
	tests/client_lib.py \
	tests/codec_util.h \
	tests/coded_util.h \
	tests/kernels_util.h \
	tests/fault_cases.py \
	tests/fault_lib.py \
	tests/fault_alloc.c \
	tests/fault_shim.c \
	tests/fuzz_util.h \
	tests/quant_util.h \
	tests/gpu_enc_host.h \
	tests/gpu_enc_util.h \
	tests/gpu_feed_util.h \
	tests/gpu_lane_host.h \
	tests/gpu_model.h \
	tests/gpu_util.h \
	tests/gen_model.py \
	tests/gen_bad_headers.py \
	tests/handle_cases.py \
	tests/hub_server.py \
	tests/posix_cases.py \
	tests/requirements-torch.txt \
	tests/lib_model.h \
	tests/real_names.h \
	tests/st_text.h \
	tests/systemd_lib.py \
	tests/torch_load.py \
	tests/memory_lib.py \
	tests/mount_lib.py
