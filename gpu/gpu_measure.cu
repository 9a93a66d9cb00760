/* SPDX-License-Identifier: Apache-2.0 */
/* Decoding with everything in device memory, for benchmarks (gpu_abi.h). */
#include <cerrno>
#include <new>

#include "gpu_measure.cuh"
#include "gpu_module.cuh"

#define TABLES_MAX 256u

namespace {

struct measure {
	std::vector<struct eq_gpu_task> tasks;
	std::vector<int> cls;
	std::vector<struct eq_gpu_table> tables;
	std::vector<unsigned char> chunks;      /* of one copy */
	std::vector<size_t> out_at;
	std::vector<struct eq_gpu_block> blocks;
	unsigned first[EQ_GPU_CLASSES + 1];     /* of blocks, a class */
	size_t out_len = 0;                     /* of one copy */
	device_memory d_in, d_out, d_tables, d_tasks, d_blocks, d_status, d_differ;
};

size_t round_up(size_t n)
{
	return (n + 255) / 256 * 256;
}

/* The tasks of one copy, with offsets where addresses will be. */
int prepare(measure *m, const struct eq_decode_job *jobs, size_t n)
{
	struct eq_gpu_tables t;

	memset(&t, 0, sizeof(t));
	m->tables.resize(TABLES_MAX);
	t.array = m->tables.data();
	t.max = TABLES_MAX;
	for (size_t i = 0; i < n; i++) {
		struct eq_gpu_task task;
		int cls = eq_gpu_prepare(&jobs[i], &task, &t);

		if (cls == EQ_GPU_CPU)
			return -ENOTSUP;
		task.in = (const unsigned char *)m->chunks.size();
		m->out_at.push_back(m->out_len);
		m->chunks.insert(m->chunks.end(), jobs[i].in, jobs[i].in + jobs[i].in_len);
		m->chunks.resize(round_up(m->chunks.size() + EQ_SLACK));
		m->out_len = round_up(m->out_len + (size_t)jobs[i].n_units * task.unit);
		m->tasks.push_back(task);
		m->cls.push_back(cls);
	}
	return 0;
}

/* Memory for all copies; chunks in each, tasks that point into them. */
cudaError_t place(measure *m, unsigned copies)
{
	std::vector<struct eq_gpu_task> all;
	std::vector<int> cls;
	cudaError_t rc = m->d_in.get(m->chunks.size() * copies);

	if (!rc)
		rc = m->d_out.get(m->out_len * copies);
	if (!rc)
		rc = m->d_status.get(m->tasks.size() * copies * sizeof(int32_t));
	if (!rc)
		rc = m->d_differ.get(sizeof(int));
	if (!rc)
		rc = m->d_tables.put(m->tables);
	for (unsigned c = 0; c < copies && !rc; c++) {
		unsigned char *in = (unsigned char *)m->d_in.p + c * m->chunks.size();

		rc = cudaMemcpy(in, m->chunks.data(), m->chunks.size(), cudaMemcpyHostToDevice);
		for (size_t i = 0; i < m->tasks.size(); i++) {
			struct eq_gpu_task t = m->tasks[i];

			t.in = in + (size_t)t.in;
			t.out = (unsigned char *)m->d_out.p + c * m->out_len + m->out_at[i];
			t.tables = (const struct eq_gpu_table *)m->d_tables.p;
			t.status = (int32_t *)m->d_status.p + all.size();
			all.push_back(t);
			cls.push_back(m->cls[i]);
		}
	}
	if (rc)
		return rc;
	m->blocks.resize(all.size());
	m->first[0] = 0;
	for (int c = 0; c < EQ_GPU_CLASSES; c++)
		m->first[c + 1] = m->first[c] + eq_gpu_blocks(all.data(), cls.data(), all.size(), c,
							      EQ_GPU_WARPS,
							      m->blocks.data() + m->first[c]);
	rc = m->d_tasks.put(all);
	return rc ? rc : m->d_blocks.put(m->blocks);
}

cudaError_t decode_all(measure *m)
{
	cudaError_t rc = cudaSuccess;

	for (int c = 0; c < EQ_GPU_CLASSES && !rc; c++)
		if (m->first[c + 1] > m->first[c])
			rc = eq_gpu_launch(c, (const struct eq_gpu_task *)m->d_tasks.p,
					   (const struct eq_gpu_block *)m->d_blocks.p + m->first[c],
					   m->first[c + 1] - m->first[c], EQ_GPU_WARPS, 0);
	return rc;
}

/* Results of the first copy to the jobs, after a run over poisoned memory; all
 * other copies must be the same. */
cudaError_t collect(measure *m, struct eq_decode_job *jobs, size_t n, unsigned copies,
		    int *differ)
{
	std::vector<int32_t> status(n * copies);
	cudaError_t rc = cudaMemset(m->d_out.p, 0xee, m->d_out.size);

	*differ = 0;
	if (!rc)
		rc = cudaMemset(m->d_status.p, 0xee, m->d_status.size);
	if (!rc)
		rc = cudaMemset(m->d_differ.p, 0, sizeof(int));
	if (!rc)
		rc = decode_all(m);
	for (unsigned c = 1; c < copies && !rc; c++)
		rc = eq_gpu_compare(m->d_out.p, (unsigned char *)m->d_out.p + c * m->out_len,
				    m->out_len / 16, (int *)m->d_differ.p, 0);
	if (!rc)
		rc = cudaMemcpy(differ, m->d_differ.p, sizeof(int), cudaMemcpyDeviceToHost);
	if (!rc)
		rc = cudaMemcpy(status.data(), m->d_status.p, m->d_status.size,
				cudaMemcpyDeviceToHost);
	for (size_t i = 0; i < n && !rc; i++) {
		jobs[i].status = status[i];
		rc = cudaMemcpy(jobs[i].out, (unsigned char *)m->d_out.p + m->out_at[i],
				(size_t)jobs[i].n_units * jobs[i].plan->unit,
				cudaMemcpyDeviceToHost);
	}
	for (size_t i = n; i < status.size(); i++)
		*differ |= status[i] != status[i % n];
	return rc;
}

int run(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n, unsigned copies,
	unsigned runs, struct eq_gpu_measure *out)
{
	struct eq_gpu_scope scope(eq_gpu_context(be));
	measure m;
	cudaError_t rc = scope.rc;
	int differ = 0, err = prepare(&m, jobs, n);

	if (err)
		return err;
	if (!rc)
		rc = place(&m, copies);
	if (!rc)
		rc = collect(&m, jobs, n, copies, &differ);
	if (!rc)
		rc = median(runs, &out->decode_s, [&] { return decode_all(&m); });
	if (!rc)
		rc = median(runs, &out->copy_s, [&] {
			size_t half = m.d_out.size / 2;

			return cudaMemcpyAsync(m.d_out.p, (unsigned char *)m.d_out.p + half, half,
					       cudaMemcpyDeviceToDevice);
		});
	out->in_bytes = m.d_in.size;
	out->out_bytes = m.d_out.size;
	if (rc == cudaErrorMemoryAllocation)
		return -ENOMEM;
	return rc || differ ? -EIO : 0;
}

} // namespace

int eq_gpu_measure(const struct eq_backend *be, struct eq_decode_job *jobs, size_t n,
		   unsigned copies, unsigned runs, struct eq_gpu_measure *out)
{
	memset(out, 0, sizeof(*out));
	try {
		return run(be, jobs, n, copies, runs, out);
	} catch (const std::bad_alloc &) {
		return -ENOMEM;
	}
}
