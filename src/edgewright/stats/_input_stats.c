/* One look at an input and at what the model made of it: range, summary statistics, latency, in a few microseconds.

   This does what `look.py` does in numpy, and nothing else; `look.py` is the specification and tests compare the two.
   Only CPython's limited API is used, so one wheel serves every Python from 3.11 on. Callers hold the GIL throughout,
   so a ring needs no lock. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

#define LANES 64
#define BUDGET 4096     /* values of an input whose statistics are taken */
#define BLOCKS 8        /* in which they lie, evenly spread, if there are more */
#define MOST_CHANNELS 16
#define HEAD 2          /* columns: began, latency */
#define WHOLE 5         /* columns: low, high, mean, spread, roughness */
#define TAIL 4          /* columns: greatest, second, log-sum-exp, class */

typedef struct {
    double sum[MOST_CHANNELS], squares[MOST_CHANNELS], shift[MOST_CHANNELS];
    double low, high, steps;
    Py_ssize_t positions, neighbours;
} Moments;

/* Whether all values are finite and within a range. Floats have the order of their bits' whole numbers where no sign
   is set, NaN and infinity lie above all others: so two usual kinds of range need one comparison a value. The first
   calls -0.0 outside; whoever asks looks again. */
WIDE static int within(const float *x, Py_ssize_t n, float low, float high)
{
    unsigned int most[LANES] = {0}, greatest = 0, limit;
    int outside[LANES] = {0}, any = 0;
    const unsigned int *bits = (const unsigned int *)x; /* compiled with -fno-strict-aliasing */
    Py_ssize_t i = 0;
    memcpy(&limit, &high, sizeof limit);
    if (high >= 0 && (low == 0 || low == -high)) {
        unsigned int mask = low == 0 ? 0xffffffffu : 0x7fffffffu;
        for (; i + LANES <= n; i += LANES)
            for (int j = 0; j < LANES; j++) {
                unsigned int value = bits[i + j] & mask;
                most[j] = value > most[j] ? value : most[j];
            }
        for (; i < n; i++)
            greatest = (bits[i] & mask) > greatest ? (bits[i] & mask) : greatest;
        for (int j = 0; j < LANES; j++)
            greatest = most[j] > greatest ? most[j] : greatest;
        return greatest <= limit;
    }
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            outside[j] |= !((x[i + j] >= low) & (x[i + j] <= high));
    for (; i < n; i++)
        any |= !((x[i] >= low) & (x[i] <= high));
    for (int j = 0; j < LANES; j++)
        any |= outside[j];
    return !any;
}

/* Adds the moments of `count` blocks of so many positions, each of `channels` values; neighbours in one channel lie
   `channels` apart, blocks begin `positions - block` / (count - 1) positions apart. */
WIDE static void add(const float *x, Py_ssize_t positions, Py_ssize_t block, Py_ssize_t count, int channels,
                     Moments *into)
{
    float sum[LANES] = {0}, squares[LANES] = {0}, steps[LANES] = {0}, low[LANES], high[LANES], shift[LANES];
    int lanes = channels * (LANES / channels);
    Py_ssize_t n = block * channels, pairs = n - channels;
    for (int j = 0; j < LANES; j++)
        shift[j] = low[j] = high[j] = x[j % channels];
    for (Py_ssize_t number = 0; number < count; number++) {
        const float *at = x + (count > 1 ? number * (positions - block) / (count - 1) : 0) * channels;
        Py_ssize_t i = 0, k = 0;
        if (lanes == LANES) {
            for (; i + LANES <= n; i += LANES)
                for (int j = 0; j < LANES; j++) {
                    float value = at[i + j], d = value - shift[j];
                    sum[j] += d;
                    squares[j] += d * d;
                    low[j] = value < low[j] ? value : low[j];
                    high[j] = value > high[j] ? value : high[j];
                }
        } else {
            for (; i + lanes <= n; i += lanes)
                for (int j = 0; j < lanes; j++) {
                    float value = at[i + j], d = value - shift[j];
                    sum[j] += d;
                    squares[j] += d * d;
                    low[j] = value < low[j] ? value : low[j];
                    high[j] = value > high[j] ? value : high[j];
                }
        }
        for (int j = 0; i < n; i++, j++) {
            float value = at[i], d = value - shift[j];
            sum[j] += d;
            squares[j] += d * d;
            low[j] = value < low[j] ? value : low[j];
            high[j] = value > high[j] ? value : high[j];
        }
        for (; k + LANES <= pairs; k += LANES)
            for (int j = 0; j < LANES; j++) {
                float d = at[k + j + channels] - at[k + j];
                steps[j] += d * d;
            }
        for (int j = 0; k < pairs; k++, j++) {
            float d = at[k + channels] - at[k];
            steps[j] += d * d;
        }
    }
    for (int j = 0; j < lanes; j++) {
        into->sum[j % channels] += sum[j];
        into->squares[j % channels] += squares[j];
        into->low = low[j] < into->low ? low[j] : into->low;
        into->high = high[j] > into->high ? high[j] : into->high;
    }
    for (int j = 0; j < LANES; j++)
        into->steps += steps[j];
    for (int c = 0; c < channels; c++)
        into->shift[c] = shift[c];
    into->positions = count * block;
    into->neighbours = count * (pairs > 0 ? pairs : 0);
}

/* Takes the moments of a stretch, or of evenly spread blocks of it if it is longer than the budget. */
static void spread_over(const float *x, Py_ssize_t positions, int channels, Py_ssize_t budget, Moments *into)
{
    if (positions <= budget)
        add(x, positions, positions, 1, channels, into);
    else
        add(x, positions, budget / BLOCKS, BLOCKS, channels, into);
}

static void clear(Moments *into)
{
    memset(into, 0, sizeof *into);
    into->low = HUGE_VAL;
    into->high = -HUGE_VAL;
}

static void conclude(const Moments *m, int c, double *mean, double *variance)
{
    double n = (double)m->positions, shifted = m->sum[c] / n;
    double v = m->squares[c] / n - shifted * shifted;
    *mean = m->shift[c] + shifted;
    *variance = v > 0 ? v : 0;
}

/* Writes low, high, mean, spread, roughness, then mean and spread of each channel if there are several. */
static void summarise(const float *x, Py_ssize_t values, int channels, int interleaved, double *row)
{
    Moments all;
    double means[MOST_CHANNELS], variances[MOST_CHANNELS], mean = 0, variance = 0;
    double low = HUGE_VAL, high = -HUGE_VAL, steps = 0, neighbours = 0;
    Py_ssize_t positions = values / channels;
    for (int part = 0; part < (interleaved ? 1 : channels); part++) {
        clear(&all);
        spread_over(x + part * positions, positions, interleaved ? channels : 1, BUDGET / channels, &all);
        for (int c = 0; c < (interleaved ? channels : 1); c++)
            conclude(&all, c, &means[part + c], &variances[part + c]);
        low = all.low < low ? all.low : low;
        high = all.high > high ? all.high : high;
        steps += all.steps;
        neighbours += (double)all.neighbours;
    }
    for (int c = 0; c < channels; c++)
        mean += means[c] / channels;
    double within_channels = 0;
    for (int c = 0; c < channels; c++) {
        within_channels += variances[c] / channels;
        variance += (variances[c] + (means[c] - mean) * (means[c] - mean)) / channels;
    }
    row[0] = low;
    row[1] = high;
    row[2] = mean;
    row[3] = sqrt(variance);
    row[4] = within_channels > 0 && neighbours > 0 ? steps / neighbours / (2 * within_channels) : 0;
    if (channels > 1)
        for (int c = 0; c < channels; c++) {
            row[WHOLE + 2 * c] = means[c];
            row[WHOLE + 2 * c + 1] = sqrt(variances[c]);
        }
}

static void conclude_output(const float *x, Py_ssize_t n, double *row)
{
    Py_ssize_t best = 0;
    float first = x[0], second = -FLT_MAX;
    for (Py_ssize_t i = 1; i < n; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
            best = i;
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    double total = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        total += expf(x[i] - first);
    row[0] = first;
    row[1] = n > 1 ? second : first;
    row[2] = first + log(total);
    row[3] = (double)best;
}

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Opens a C-contiguous array of float32; 0 if it is one, -1 without an exception if it is not. */
static int open_floats(PyObject *array, Py_buffer *view)
{
    if (PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
        PyErr_Clear();
        return -1;
    }
    if (view->itemsize == 4 && view->format && strcmp(view->format, "f") == 0)
        return 0;
    PyBuffer_Release(view);
    return -1;
}

typedef struct {
    PyObject_HEAD
    Py_ssize_t rows, values, outputs, head, dropped;
    int channels, interleaved, columns;
    float low, high, least, most;
    double *table;
    char *state; /* of each row: 0 free, 1 waits for its output, 2 complete */
} Ring;

static int ring_init(PyObject *self, PyObject *args, PyObject *names)
{
    static char *known[] = {"rows", "values", "channels", "interleaved", "low", "high", "outputs", "least", "most", NULL};
    Ring *ring = (Ring *)self;
    Py_ssize_t rows, values, outputs;
    int channels, interleaved;
    if (!PyArg_ParseTupleAndKeywords(args, names, "nnipffnff", known, &rows, &values, &channels, &interleaved,
                                     &ring->low, &ring->high, &outputs, &ring->least, &ring->most))
        return -1;
    if (rows < 1 || rows > 65536 || values < 1 || channels < 1 || channels > MOST_CHANNELS || values % channels ||
        outputs < 0) {
        PyErr_SetString(PyExc_ValueError, "a ring has 1 to 65536 rows, 1 to 16 channels that divide the values");
        return -1;
    }
    free(ring->table);
    free(ring->state);
    ring->rows = rows;
    ring->values = values;
    ring->outputs = outputs;
    ring->channels = channels;
    ring->interleaved = interleaved;
    ring->head = ring->dropped = 0;
    ring->columns = HEAD + WHOLE + (channels > 1 ? 2 * channels : 0) + TAIL;
    ring->table = calloc((size_t)rows * (size_t)ring->columns, sizeof(double));
    ring->state = calloc((size_t)rows, 1);
    if (!ring->table || !ring->state) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void ring_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    free(((Ring *)self)->table);
    free(((Ring *)self)->state);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *ring_admit(PyObject *self, PyObject *array)
{
    Ring *ring = (Ring *)self;
    Py_buffer view;
    if (!ring->state) {
        PyErr_SetString(PyExc_ValueError, "the ring was not made");
        return NULL;
    }
    if (open_floats(array, &view) < 0)
        return PyLong_FromLong(-1);
    const float *x = view.buf;
    Py_ssize_t n = view.len / 4, slot = -1;
    if (n >= ring->values && within(x, n, ring->low, ring->high)) {
        /* The next free row; one whose inference takes long, or never ends, is passed over. */
        for (slot = ring->head; ring->state[slot] != 0;)
            if ((slot = (slot + 1) % ring->rows) == ring->head)
                break;
        if (ring->state[slot] == 0) {
            double *row = ring->table + slot * ring->columns;
            ring->head = (slot + 1) % ring->rows;
            ring->state[slot] = 1;
            row[0] = now_s();
            summarise(x, ring->values, ring->channels, ring->interleaved, row + HEAD);
        } else {
            slot = ring->rows;
            ring->dropped++;
        }
    }
    PyBuffer_Release(&view);
    return PyLong_FromSsize_t(slot);
}

static PyObject *ring_release(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Ring *ring = (Ring *)self;
    Py_buffer view;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "release takes a slot and an array");
        return NULL;
    }
    Py_ssize_t slot = PyLong_AsSsize_t(args[0]);
    if (slot == -1 && PyErr_Occurred())
        return NULL;
    if (!ring->state || slot < 0 || slot > ring->rows || (slot < ring->rows && ring->state[slot] != 1)) {
        PyErr_SetString(PyExc_ValueError, "no input waits in this slot");
        return NULL;
    }
    double *row = slot < ring->rows ? ring->table + slot * ring->columns : NULL;
    double ended = row ? now_s() : 0;
    int passes = 0;
    if (open_floats(args[1], &view) == 0) {
        const float *x = view.buf;
        Py_ssize_t n = view.len / 4;
        passes = n >= ring->outputs && within(x, n, ring->least, ring->most);
        if (passes && row) {
            row[1] = ended - row[0];
            if (ring->outputs > 0)
                conclude_output(x, ring->outputs, row + ring->columns - TAIL);
        }
        PyBuffer_Release(&view);
    }
    if (row)
        ring->state[slot] = passes ? 2 : 0;
    return PyBool_FromLong(passes);
}

static PyObject *ring_cancel(PyObject *self, PyObject *number)
{
    Ring *ring = (Ring *)self;
    Py_ssize_t slot = PyLong_AsSsize_t(number);
    if (slot == -1 && PyErr_Occurred())
        return NULL;
    if (ring->state && slot >= 0 && slot < ring->rows && ring->state[slot] == 1)
        ring->state[slot] = 0;
    Py_RETURN_NONE;
}

static PyObject *ring_take(PyObject *self, PyObject *unused)
{
    Ring *ring = (Ring *)self;
    Py_ssize_t complete = 0, size = ring->columns * (Py_ssize_t)sizeof(double);
    (void)unused;
    for (Py_ssize_t k = 0; k < ring->rows; k++)
        complete += ring->state[k] == 2;
    PyObject *found = PyBytes_FromStringAndSize(NULL, complete * size);
    if (!found)
        return NULL;
    char *place = PyBytes_AsString(found);
    for (Py_ssize_t k = 0; k < ring->rows; k++) { /* from the oldest on */
        Py_ssize_t slot = (ring->head + k) % ring->rows;
        if (ring->state[slot] != 2)
            continue;
        memcpy(place, ring->table + slot * ring->columns, (size_t)size);
        place += size;
        ring->state[slot] = 0;
    }
    return found;
}

static PyObject *ring_columns(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((Ring *)self)->columns);
}

static PyObject *ring_dropped(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSsize_t(((Ring *)self)->dropped);
}

static PyMethodDef ring_methods[] = {
    {"record_input", ring_admit, METH_O, NULL},
    {"record_output", (PyCFunction)(void (*)(void))ring_release, METH_FASTCALL, NULL},
    {"discard", ring_cancel, METH_O, NULL},
    {"drain", ring_take, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_members[] = {
    {"columns", ring_columns, NULL, NULL, NULL},
    {"dropped", ring_dropped, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_init, ring_init}, {Py_tp_dealloc, ring_free}, {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_members}, {0, NULL},
};

static PyType_Spec ring_spec = {"edgewright.stats._input_stats.Ring", sizeof(Ring), 0, Py_TPFLAGS_DEFAULT, ring_slots};

static PyObject *look_within(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer view;
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "within takes an array, the least and the greatest value");
        return NULL;
    }
    double low = PyFloat_AsDouble(args[1]), high = PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (open_floats(args[0], &view) < 0)
        Py_RETURN_NONE;
    int passes = within(view.buf, view.len / 4, (float)low, (float)high);
    PyBuffer_Release(&view);
    return PyBool_FromLong(passes);
}

static PyMethodDef functions[] = {
    {"within", (PyCFunction)(void (*)(void))look_within, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_input_stats", "What input_stats.py does in numpy, compiled.", -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__input_stats(void)
{
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&ring_spec);
    PyObject *names = Py_BuildValue("(ss)", "Ring", "within");
    if (!module || !type || !names || PyModule_AddObjectRef(module, "Ring", type) < 0 ||
        PyModule_AddObjectRef(module, "__all__", names) < 0) {
        Py_XDECREF(module);
        module = NULL;
    }
    Py_XDECREF(type);
    Py_XDECREF(names);
    return module;
}
