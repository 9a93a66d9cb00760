/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding with everything in device memory, for benchmarks (gpu_abi.h). */
#include <cerrno>
#include <new>

#include "gpu_encode.cuh"
#include "gpu_measure.cuh"
#include "gpu_module.cuh"

namespace {

struct measure {
	std::vector<struct eq_gpu_enc_task> tasks;
	std::vector<size_t> first;              /* task of a job of one copy */
	std::vector<unsigned char> units;       /* of one copy */
	std::vector<struct eq_encode_table> tables;
	size_t work = 0, made = 0;              /* of one copy */
	device_memory d_units, d_tables, d_work, d_made, d_tasks, d_done;
};

/* Index of a table, put behind those of the other plans. */
size_t table_at(measure *m, const struct eq_encode_table *t)
{
	m->tables.push_back(*t);
	return m->tables.size() - 1;
}

/* The tasks of one copy, with offsets where addresses will be. */
void prepare(measure *m, const struct eq_encode_job *jobs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct eq_encode_job *j = &jobs[i];
		const unsigned char *p = (const unsigned char *)j->units;
		size_t units = m->units.size();

		m->first.push_back(m->tasks.size());
		m->units.insert(m->units.end(), p, p + (size_t)j->n_units * eq_enc_unit(j->plan));
		m->units.resize((m->units.size() + 255) / 256 * 256);
		for (unsigned k = 0; k < eq_enc_tasks(j->plan); k++) {
			const struct eq_encode_part *part = &j->part[k];
			struct eq_gpu_enc_task t;

			eq_enc_task(j, k, &t);
			t.units = (const unsigned char *)units;
			if (eq_enc_coded(part->kind)) {
				t.table = (const struct eq_encode_table *)
					table_at(m, &j->plan->table[part->arg]);
				t.work = (unsigned char *)m->work;
				m->work += eq_enc_work(j->n_units, part->kind == EQ_PART_PAIR);
			}
			m->tasks.push_back(t);
		}
		m->made += eq_enc_bound(j);
	}
}

/* Memory for all copies; units in each, tasks that point into them. */
cudaError_t place(measure *m, unsigned copies)
{
	std::vector<struct eq_gpu_enc_task> all;
	cudaError_t rc = m->d_units.get(m->units.size() * copies);

	if (!rc)
		rc = m->d_work.get(m->work * copies);
	if (!rc)
		rc = m->d_made.get(m->made * copies);
	if (!rc)
		rc = m->d_done.get(m->tasks.size() * copies * sizeof(struct eq_gpu_enc_done));
	if (!rc)
		rc = m->d_tables.put(m->tables);
	for (unsigned c = 0; c < copies && !rc; c++) {
		unsigned char *units = (unsigned char *)m->d_units.p + c * m->units.size();

		rc = cudaMemcpy(units, m->units.data(), m->units.size(), cudaMemcpyHostToDevice);
		for (struct eq_gpu_enc_task t : m->tasks) {
			t.units = units + (size_t)t.units;
			t.made = (unsigned char *)m->d_made.p;
			t.done = (struct eq_gpu_enc_done *)m->d_done.p + all.size();
			if (eq_enc_coded(t.kind)) {
				t.table = (const struct eq_encode_table *)m->d_tables.p +
					  (size_t)t.table;
				t.work = (unsigned char *)m->d_work.p + c * m->work + (size_t)t.work;
			}
			all.push_back(t);
		}
	}
	return rc ? rc : m->d_tasks.put(all);
}

cudaError_t encode_all(measure *m)
{
	return eq_enc_launch((const struct eq_gpu_enc_task *)m->d_tasks.p,
			     (struct eq_gpu_enc_done *)m->d_done.p,
			     (unsigned)(m->d_done.size / sizeof(struct eq_gpu_enc_done)), NULL, 0);
}

/* The chunks of one copy, to the jobs. */
cudaError_t collect(measure *m, struct eq_encode_job *jobs, size_t n, unsigned copy)
{
	std::vector<struct eq_gpu_enc_done> done(m->tasks.size());
	std::vector<unsigned char> made(m->d_made.size);
	cudaError_t rc = cudaMemcpy(done.data(),
				    (struct eq_gpu_enc_done *)m->d_done.p + copy * done.size(),
				    done.size() * sizeof(done[0]), cudaMemcpyDeviceToHost);

	if (!rc)
		rc = cudaMemcpy(made.data(), m->d_made.p, made.size(), cudaMemcpyDeviceToHost);
	for (size_t i = 0; i < n && !rc; i++)
		eq_enc_finish(&jobs[i], &done[m->first[i]], made.data());
	return rc;
}

int run(const struct eq_backend *be, struct eq_encode_job *jobs, size_t n, unsigned copies,
	unsigned runs, struct eq_gpu_measure_encode *out)
{
	struct eq_gpu_scope scope(eq_gpu_context(be));
	measure m;
	cudaError_t rc = scope.rc;

	prepare(&m, jobs, n);
	if (m.made * copies > UINT32_MAX)
		return -ENOTSUP;
	if (!rc)
		rc = place(&m, copies);
	if (!rc)
		rc = median(runs, &out->encode_s, [&] { return encode_all(&m); });
	if (!rc)
		rc = collect(&m, jobs, n, copies / 2);
	out->in_bytes = m.d_units.size;
	if (rc == cudaErrorMemoryAllocation)
		return -ENOMEM;
	return rc ? -EIO : 0;
}

} // namespace

int eq_gpu_measure_encode(const struct eq_backend *be, struct eq_encode_job *jobs, size_t n,
			  unsigned copies, unsigned runs, struct eq_gpu_measure_encode *out)
{
	memset(out, 0, sizeof(*out));
	try {
		return run(be, jobs, n, copies, runs, out);
	} catch (const std::bad_alloc &) {
		return -ENOMEM;
	}
}
