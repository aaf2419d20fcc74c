/* Compiled loops: one copies a sample out of the memory of a CPU tensor, one tells all that a `Digest` holds of many.

   `compiled.py` is the door to them. What is computed is specified by `sample.strided` (which elements),
   `sketch.cells` (which bin), `moments.two_pass` and `code.encode`; the tests hold every number to those.
   Tensors are read through their attributes alone, so that one build serves every torch, and (Py_LIMITED_API) every
   Python from 3.10 on. */

#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "loops.h"

/* room for samples ---------------------------------------------------------------------------------------------- */

/* What a step copies is let go at its end, and the next step copies as much: room is kept by its size, for memory
   that comes anew from the system costs more than what is written to it. The interpreter's lock guards it. */

typedef struct Free {
    struct Free *next;
} Free;

#define CLASSES 16 /* powers of two from 64 bytes to 2 MB, the most that a sample takes */
static Free *idle[CLASSES];

static void *room_taken(int class) {
    Free *found = idle[class];
    if (!found) return malloc((size_t)64 << class);
    idle[class] = found->next;
    return found;
}

static void room_given_back(int class, void *room) {
    Free *given = room;
    given->next = idle[class];
    idle[class] = given;
}

static PyObject *release(PyObject *module, PyObject *unused) {
    for (int class = 0; class < CLASSES; class++)
        while (idle[class]) {
            Free *next = idle[class]->next;
            free(idle[class]);
            idle[class] = next;
        }
    Py_RETURN_NONE;
}

/* samples ------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Py_ssize_t size; /* elements of the tensor */
    Py_ssize_t count;
    void *values;
    int width, class; /* bytes of an element, 4 or 8 */
} Sample;

static PyTypeObject *sample_type;

static Sample *sample_new(int width, Py_ssize_t count, Py_ssize_t size) {
    int class = 0;
    if (count > MOST) {
        PyErr_Format(PyExc_ValueError, "a sample of %zd elements, where %d is the most", count, MOST);
        return NULL;
    }
    while (((size_t)64 << class) < (size_t)(width * count)) class++;
    Sample *made = PyObject_New(Sample, sample_type);
    if (!made) return NULL;
    made->size = size, made->count = count, made->width = width, made->class = class;
    made->values = room_taken(class);
    if (!made->values) {
        Py_DECREF(made);
        return (Sample *)PyErr_NoMemory();
    }
    return made;
}

static void sample_freed(PyObject *self) {
    Sample *sample = (Sample *)self;
    if (sample->values) room_given_back(sample->class, sample->values);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *sample_size(PyObject *self, void *closure) { return PyLong_FromSsize_t(((Sample *)self)->size); }

static PyObject *sample_elements(PyObject *self, void *closure) { return PyLong_FromSsize_t(((Sample *)self)->count); }

static PyObject *sample_bytes(PyObject *self, void *closure) { return PyLong_FromLong(((Sample *)self)->width); }

static PyObject *sample_finite(PyObject *self, void *closure) {
    Sample *sample = (Sample *)self;
    int broken = 0;
    if (sample->width == 8)
        for (Py_ssize_t i = 0; i < sample->count; i++) {
            double x = ((double *)sample->values)[i];
            broken |= !(x - x == 0);
        }
    else
        for (Py_ssize_t i = 0; i < sample->count; i++) {
            float x = ((float *)sample->values)[i];
            broken |= !(x - x == 0);
        }
    return PyBool_FromLong(!broken);
}

static PyObject *sample_interface(PyObject *self, void *closure) {
    Sample *sample = (Sample *)self;
    return Py_BuildValue("{s:i,s:s,s:(n),s:(NO)}", "version", 3, "typestr", sample->width == 8 ? "=f8" : "=f4", "shape",
                         sample->count, "data", PyLong_FromVoidPtr(sample->values), Py_False);
}

static PyGetSetDef sample_attributes[] = {
    {"size", sample_size, NULL, "Elements of the tensor.", NULL},
    {"elements", sample_elements, NULL, "How many.", NULL},
    {"bytes", sample_bytes, NULL, "Of each, 4 or 8.", NULL},
    {"finite", sample_finite, NULL, "Whether every element is finite.", NULL},
    {"__array_interface__", sample_interface, NULL, "The elements, 1-D, float32 or float64.", NULL},
    {NULL},
};

/* reading tensors ----------------------------------------------------------------------------------------------- */

static PyObject *types[2], *dtypes[4], *strided, *layout_of; /* as `prepare` was told; of float32, 16, bfloat16, 64 */
static PyObject *s_is_cpu, *s_is_neg, *s_layout, *s_dtype, *s_shape, *s_stride, *s_data_ptr;
enum { FLOAT32, FLOAT16, BFLOAT16, FLOAT64, UNSERVED = -1, FAILED = -2 };

/* Whether the attribute of `x`, or what its method gives, is `wanted`; -1 for an error. */
static int is(PyObject *x, PyObject *name, int method, PyObject *wanted) {
    PyObject *found = method ? PyObject_CallMethodObjArgs(x, name, NULL) : PyObject_GetAttr(x, name);
    Py_XDECREF(found); /* which lives on elsewhere, or is not `wanted` */
    return found ? found == wanted : -1;
}

/* How its numbers lie in memory; UNSERVED for subclasses of Tensor, other devices, what is sparse or negated. */
static int kind_of(PyObject *x) {
    PyObject *type = (PyObject *)Py_TYPE(x);
    if (!layout_of || (type != types[0] && type != types[1])) return UNSERVED;
    int there = is(x, s_is_cpu, 0, Py_True);
    if (there > 0) there = is(x, s_layout, 0, strided);
    if (there > 0) there = is(x, s_is_neg, 1, Py_False);
    if (there <= 0) return there ? FAILED : UNSERVED;
    PyObject *dtype = PyObject_GetAttr(x, s_dtype);
    if (!dtype) return FAILED;
    int kind = FLOAT64;
    while (kind >= 0 && dtype != dtypes[kind]) kind--;
    Py_DECREF(dtype);
    return kind;
}

static void *address_of(PyObject *x) {
    PyObject *number = PyObject_CallMethodObjArgs(x, s_data_ptr, NULL);
    void *found = number ? PyLong_AsVoidPtr(number) : NULL;
    Py_XDECREF(number);
    return found;
}

typedef struct {
    const void *from;
    const int64_t *places; /* elements at these places; where there are none, at 0, `step`, 2 `step` ... */
    int64_t step;
    int kind;
    Sample *to;
    PyObject *layout; /* keeps the places alive */
} Copy;

#define COPIED(From, To, read)                                                                                         \
    do {                                                                                                               \
        const From *x = copy->from;                                                                                    \
        To *out = copy->to->values;                                                                                    \
        if (places)                                                                                                    \
            for (Py_ssize_t i = 0; i < count; i++) out[i] = read(x[places[i]]);                                        \
        else                                                                                                           \
            for (Py_ssize_t i = 0; i < count; i++) out[i] = read(x[i * step]);                                         \
    } while (0)

static void copied(const Copy *copy) {
    const int64_t *places = copy->places, step = copy->step;
    const Py_ssize_t count = copy->to->count;
    switch (copy->kind) {
        case FLOAT32: COPIED(float, float, ); break;
        case FLOAT16: COPIED(uint16_t, float, of_float16); break;
        case BFLOAT16: COPIED(uint16_t, float, of_bfloat16); break;
        default: COPIED(double, double, );
    }
}

/* What is to be copied of `x`: 1; 0 where it is not served, -1 for an error. */
static int copy_of(PyObject *x, PyObject *n, Copy *copy) {
    int kind = kind_of(x);
    if (kind < 0) return kind == FAILED ? -1 : 0;
    PyObject *shape = PyObject_GetAttr(x, s_shape), *strides = PyObject_CallMethodObjArgs(x, s_stride, NULL);
    PyObject *layout = shape && strides ? PyObject_CallFunctionObjArgs(layout_of, shape, strides, n, NULL) : NULL;
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    if (!layout) return -1;
    copy->kind = kind, copy->layout = layout;
    copy->step = PyLong_AsLongLong(PyTuple_GetItem(layout, 0));
    copy->places = PyLong_AsVoidPtr(PyTuple_GetItem(layout, 1));
    Py_ssize_t count = PyLong_AsSsize_t(PyTuple_GetItem(layout, 2)), size = PyLong_AsSsize_t(PyTuple_GetItem(layout, 3));
    copy->from = address_of(x);
    if (!copy->from && count && !PyErr_Occurred()) { /* zeros that nobody wrote, or memory that was given back */
        Py_DECREF(layout);
        return 0;
    }
    copy->to = PyErr_Occurred() ? NULL : sample_new(kind == FLOAT64 ? 8 : 4, count, size);
    if (copy->to) return 1;
    Py_DECREF(layout);
    return -1;
}

/* telling digests ----------------------------------------------------------------------------------------------- */

typedef struct {
    const Sample *now, *before;
    double *numbers;
    char *code; /* to be freed */
    int length;
} Task;

static void told(Task *task, Desk *desk, char *code) {
    const Py_ssize_t count = task->now->count;
    const int wide = task->now->width == 8;
    const void *x = task->now->values;
    double *numbers = task->numbers;
    if (task->before) {
        const void *before = task->before->values;
        x = wide ? (void *)less64(x, before, count, desk->values) : (void *)less32(x, before, count, desk->values);
    }
    wide ? cells64(x, count, desk->cells) : cells32(x, count, desk->cells);
    tally(desk->cells, count, desk);
    const uint32_t *apart = desk->counts + BINS;
    const Py_ssize_t kept = count - apart[1] - apart[2] - apart[3];
    numbers[0] = (double)kept, numbers[2] = 0, numbers[1] = numbers[3] = numbers[4] = Py_NAN;
    if (kept && kept < count) {
        wide ? finite64(x, count, desk->values) : finite32(x, count, desk->values);
        x = desk->values;
    }
    if (kept) wide ? moments64(x, kept, numbers) : moments32(x, kept, numbers);
    for (int i = 0; i < 4; i++) numbers[5 + i] = apart[i];
    task->length = encoded(desk->counts, code);
    task->code = malloc(task->length + 1);
    if (task->code) memcpy(task->code, code, task->length);
}

/* many at once -------------------------------------------------------------------------------------------------- */

#if defined(__GNUC__)
#define NEXT(counter) __atomic_fetch_add(&(counter), 1, __ATOMIC_RELAXED)
#else
#define NEXT(counter) ((counter)++) /* nobody else counts: no runtime there takes a C function */
#endif

typedef struct { /* each thread takes the next one until none is left */
    Py_ssize_t next, count, longest;
    void *all;
} Work;

static void tell_some(void *argument) {
    Work *work = argument;
    char code[LONGEST];
    Desk *desk = malloc(sizeof *desk + work->longest * 10);
    if (!desk) return; /* what nobody tells has no code */
    desk->values = desk + 1, desk->cells = (uint16_t *)((char *)desk->values + work->longest * 8);
    for (Py_ssize_t at; (at = NEXT(work->next)) < work->count;) told((Task *)work->all + at, desk, code);
    free(desk);
}

static void copy_some(void *argument) {
    Work *work = argument;
    for (Py_ssize_t at; (at = NEXT(work->next)) < work->count;) copied((Copy *)work->all + at);
}

/* Have `threads` of the OpenMP runtime whose GOMP_parallel lies at `runtime` do it, or this one alone. */
static void shared(void (*act)(void *), Work *work, void *runtime, unsigned threads) {
    if (runtime && threads > 1)
        ((void (*)(void (*)(void *), void *, unsigned, unsigned))runtime)(act, work, threads, 0);
    else
        act(work);
}

/* what Python calls --------------------------------------------------------------------------------------------- */

static int fits(Py_ssize_t found, Py_ssize_t wanted) {
    if (found != wanted) PyErr_Format(PyExc_TypeError, "%zd arguments, where %zd are taken", found, wanted);
    return found == wanted;
}

static PyObject *prepare(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    if (!fits(count, 8)) return NULL;
    PyObject **kept[] = {types, types + 1, dtypes, dtypes + 1, dtypes + 2, dtypes + 3, &strided, &layout_of};
    for (int i = 0; i < 8; i++) {
        PyObject *old = *kept[i];
        Py_INCREF(given[i]);
        *kept[i] = given[i];
        Py_XDECREF(old);
    }
    Py_RETURN_NONE;
}

static PyObject *serves(PyObject *module, PyObject *x) {
    int kind = kind_of(x);
    return kind == FAILED ? NULL : PyBool_FromLong(kind >= 0);
}

static PyObject *take(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    Copy copy;
    if (!fits(count, 2)) return NULL;
    int there = copy_of(given[0], given[1], &copy);
    if (there < 0) return NULL;
    if (!there) Py_RETURN_NONE;
    copied(&copy); /* with the interpreter's lock: who lets it go for microseconds may wait for it for milliseconds */
    Py_DECREF(copy.layout);
    return (PyObject *)copy.to;
}

static PyObject *take_all(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    if (!fits(count, 4)) return NULL;
    void *runtime = PyLong_AsVoidPtr(given[2]);
    unsigned threads = (unsigned)PyLong_AsUnsignedLong(given[3]);
    Py_ssize_t asked = PyErr_Occurred() ? -1 : PyList_Size(given[0]);
    if (asked < 0) return NULL;
    Work work = {0};
    Copy *copies = work.all = malloc((asked + 1) * sizeof *copies);
    PyObject *found = copies ? PyList_New(asked) : PyErr_NoMemory();
    for (Py_ssize_t at = 0; found && at < asked; at++) {
        PyObject *x = PyList_GetItem(given[0], at), *told = Py_None;
        int there = x ? copy_of(x, given[1], copies + work.count) : -1;
        if (there < 0) {
            Py_CLEAR(found);
        } else {
            if (there) told = (PyObject *)copies[work.count++].to;
            else Py_INCREF(told);
            PyList_SetItem(found, at, told);
        }
    }
    Py_BEGIN_ALLOW_THREADS
    if (found) shared(copy_some, &work, runtime, threads);
    Py_END_ALLOW_THREADS
    for (Py_ssize_t at = 0; at < work.count; at++) Py_DECREF(copies[at].layout);
    free(copies);
    return found;
}

static PyObject *take_at(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    Copy copy = {0};
    if (!fits(count, 4)) return NULL;
    copy.kind = kind_of(given[0]);
    if (copy.kind == UNSERVED) Py_RETURN_NONE;
    copy.places = PyLong_AsVoidPtr(given[1]), copy.from = copy.kind < 0 ? NULL : address_of(given[0]);
    Py_ssize_t taken = PyLong_AsSsize_t(given[2]), size = PyLong_AsSsize_t(given[3]);
    if (!copy.from && taken && !PyErr_Occurred()) Py_RETURN_NONE;
    copy.to = PyErr_Occurred() ? NULL : sample_new(copy.kind == FLOAT64 ? 8 : 4, taken, size);
    if (copy.to) copied(&copy);
    return (PyObject *)copy.to;
}

static PyObject *over(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    if (!fits(count, 2)) return NULL;
    if (Py_TYPE(given[0]) != sample_type) return PyErr_Format(PyExc_TypeError, "%R is no sample", given[0]);
    Sample *sample = (Sample *)given[0];
    double scale = PyFloat_AsDouble(given[1]);
    Sample *made = PyErr_Occurred() ? NULL : sample_new(sample->width, sample->count, sample->size);
    for (Py_ssize_t i = 0; made && i < made->count; i++)
        if (made->width == 8) ((double *)made->values)[i] = ((double *)sample->values)[i] / scale;
        else ((float *)made->values)[i] = ((float *)sample->values)[i] / (float)scale;
    return (PyObject *)made;
}

/* The numbers (a bytearray), the codes and the sizes that `tell` tells, of tasks that were done. */
static PyObject *answer(const Task *tasks, Py_ssize_t count, PyObject *numbers) {
    PyObject *codes = PyList_New(count), *sizes = PyList_New(count);
    for (Py_ssize_t at = 0; codes && sizes && at < count; at++) {
        PyObject *code = tasks[at].code ? PyBytes_FromStringAndSize(tasks[at].code, tasks[at].length) : PyErr_NoMemory();
        PyObject *size = PyLong_FromSsize_t(tasks[at].now->size);
        if (!code || !size) Py_CLEAR(codes);
        if (codes) PyList_SetItem(codes, at, code);
        else Py_XDECREF(code);
        PyList_SetItem(sizes, at, size);
    }
    PyObject *found = codes && sizes ? PyTuple_Pack(3, numbers, codes, sizes) : NULL;
    Py_XDECREF(codes);
    Py_XDECREF(sizes);
    return found;
}

static PyObject *tell(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    if (!fits(count, 4)) return NULL;
    void *runtime = PyLong_AsVoidPtr(given[2]);
    unsigned threads = (unsigned)PyLong_AsUnsignedLong(given[3]);
    Py_ssize_t asked = PyErr_Occurred() ? -1 : PyList_Size(given[0]);
    if (asked < 0 || PyList_Size(given[1]) != asked)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "not as many samples before as now");
    PyObject *numbers = PyByteArray_FromStringAndSize(NULL, asked * NUMBERS * sizeof(double)), *found = NULL;
    Task *tasks = calloc(asked + 1, sizeof *tasks);
    if (!numbers || !tasks) PyErr_NoMemory();
    Work work = {0, asked, 1, tasks};
    for (Py_ssize_t at = 0; !PyErr_Occurred() && at < asked; at++) {
        PyObject *now = PyList_GetItem(given[0], at), *before = PyList_GetItem(given[1], at);
        Task *task = tasks + at;
        if (now && before && Py_TYPE(now) == sample_type && (before == Py_None || Py_TYPE(before) == sample_type)) {
            task->now = (Sample *)now, task->before = before == Py_None ? NULL : (Sample *)before;
            task->numbers = (double *)PyByteArray_AsString(numbers) + NUMBERS * at;
            if (task->now->count > work.longest) work.longest = task->now->count;
        }
        if (!task->now || (task->before && (task->before->count != task->now->count || task->before->width != task->now->width)))
            PyErr_Format(PyExc_TypeError, "%R less %R", now, before);
    }
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS
        shared(tell_some, &work, runtime, threads);
        Py_END_ALLOW_THREADS
        found = answer(tasks, asked, numbers);
    }
    for (Py_ssize_t at = 0; tasks && at < asked; at++) free(tasks[at].code);
    free(tasks);
    Py_XDECREF(numbers);
    return found;
}

static PyObject *channels(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    if (!fits(count, 2)) return NULL;
    if (Py_TYPE(given[0]) != sample_type) return PyErr_Format(PyExc_TypeError, "%R is no sample", given[0]);
    Py_ssize_t width = PyLong_AsSsize_t(given[1]);
    if (width < 1) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "%zd channels", width);
    PyObject *moments = PyByteArray_FromStringAndSize(NULL, 3 * width * sizeof(double));
    if (moments) {
        memset(PyByteArray_AsString(moments), 0, 3 * width * sizeof(double));
        Sample *sample = (Sample *)given[0];
        by_channel(sample->values, sample->width == 8, sample->count / width, width, (double *)PyByteArray_AsString(moments));
    }
    return moments;
}

#define FAST(name) (PyCFunction)(void (*)(void)) name, METH_FASTCALL

static PyMethodDef functions[] = {
    {"prepare", FAST(prepare), "Serve tensors of two types, four dtypes, a layout, as a function tells from their shapes."},
    {"serves", serves, METH_O, "Whether a tensor can be read."},
    {"take", FAST(take), "The sample of a tensor, of at most n elements, copied; None where it is not served."},
    {"take_all", FAST(take_all), "The same of many tensors, by several threads."},
    {"take_at", FAST(take_at), "The sample of a tensor at given places."},
    {"over", FAST(over), "A sample divided by a number."},
    {"tell", FAST(tell), "Numbers, codes and sizes of the digests of samples less earlier ones, by several threads."},
    {"channels", FAST(channels), "Count, mean and M2 of the finite values of each column of a sample."},
    {"release", release, METH_NOARGS, "Give back the room that no sample takes."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_reading", "Samples of tensors and their digests, by compiled loops.", -1, functions,
};

PyMODINIT_FUNC PyInit__reading(void) {
    PyType_Slot slots[] = {
        {Py_tp_dealloc, sample_freed},
        {Py_tp_getset, sample_attributes},
        {Py_tp_doc, "Elements of a tensor, copied, to be told in a digest."},
        {0, NULL},
    };
    PyType_Spec spec = {"normscope.stats._reading.Sample", sizeof(Sample), 0, Py_TPFLAGS_DEFAULT, slots};
    struct {
        PyObject **to;
        const char *name;
    } names[] = {{&s_is_cpu, "is_cpu"}, {&s_is_neg, "is_neg"},     {&s_layout, "layout"},     {&s_dtype, "dtype"},
                 {&s_shape, "shape"},   {&s_stride, "stride"}, {&s_data_ptr, "data_ptr"}};
    PyObject *module = PyModule_Create(&definition);
    sample_type = (PyTypeObject *)PyType_FromSpec(&spec);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!(*names[i].to = PyUnicode_InternFromString(names[i].name))) return NULL;
    if (!module || !sample_type || PyModule_AddObject(module, "Sample", (PyObject *)sample_type) < 0) return NULL;
    Py_INCREF(sample_type);
    return module;
}
