package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// verify reads the file's pages with every bound checked, before bbolt does.
// bbolt trusts what it finds: it walks all pages in goroutines of its own when
// it opens a file, where a wild page number is a fault or a panic that nobody
// can catch.
func verify(path string) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return err
	}
	f := file{r: r, length: uint64(st.Size()), used: make(map[uint64]bool)}
	m, err := f.newest()
	if err != nil {
		return err
	}
	f.high = m.high
	if m.high < 3 || m.high > f.length/f.size {
		return fmt.Errorf("the file has %d bytes; its content needs %d pages of %d", f.length, m.high, f.size)
	}
	f.used[0], f.used[1] = true, true
	if m.freelist != ^uint64(0) {
		return errors.New("it has a list of free pages, which this journal never writes")
	}
	f.young = m.txid <= 1
	return f.tree(m.root, 0, bounds{})
}

// Layout of bbolt's pages. All numbers have the byte order of the machine.
const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	element     = 16
	flagBranch  = 0x01
	flagLeaf    = 0x02
	flagBucket  = 0x01 // of a leaf element
	bucketSize  = 16   // root 8, sequence 8
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaSum     = 56 // bytes of a meta before its checksum
	maxDepth    = 32
)

var order = binary.NativeEndian

type file struct {
	r      io.ReaderAt
	length uint64
	size   uint64 // of a page
	high   uint64 // first page that was never used
	used   map[uint64]bool
	// young is whether nothing was written yet: only then is the root empty.
	young bool
}

// read returns n bytes of the file. Only the pages on the way to one are in
// memory: a journal can be large.
func (f *file) read(at, n uint64) ([]byte, error) {
	if at+n > f.length {
		return nil, errors.New("it is too short")
	}
	p := make([]byte, n)
	_, err := f.r.ReadAt(p, int64(at))
	return p, err
}

type meta struct{ root, freelist, high, txid uint64 }

// newest returns the newer of the two headers. Both must be whole: bbolt would
// fall back to the older one, and forget that a command has run.
func (f *file) newest() (meta, error) {
	head, err := f.read(0, pageHeader+metaSum+8)
	if err != nil {
		return meta{}, err
	}
	f.size = uint64(order.Uint32(head[pageHeader+8:]))
	if f.size < 1024 || f.size > 1<<16 {
		return meta{}, fmt.Errorf("pages of %d bytes are not possible", f.size)
	}
	a, err := f.meta(0)
	if err != nil {
		return a, err
	}
	b, err := f.meta(1)
	if err != nil {
		return b, err
	}
	if a.txid > b.txid {
		a, b = b, a
	}
	if b.txid-a.txid != 1 {
		return b, fmt.Errorf("its headers are of the transactions %d and %d", a.txid, b.txid)
	}
	return b, nil
}

func (f *file) meta(n uint64) (meta, error) {
	b, err := f.read(n*f.size+pageHeader, metaSum+8)
	if err != nil {
		return meta{}, err
	}
	sum := fnv.New64a()
	sum.Write(b[:metaSum])
	if order.Uint32(b) != metaMagic || order.Uint32(b[4:]) != metaVersion ||
		uint64(order.Uint32(b[8:])) != f.size || order.Uint64(b[metaSum:]) != sum.Sum64() {
		return meta{}, fmt.Errorf("header %d is damaged", n)
	}
	return meta{order.Uint64(b[16:]), order.Uint64(b[32:]), order.Uint64(b[40:]), order.Uint64(b[48:])}, nil
}

// tree walks the pages under a root, each of which may appear once.
func (f *file) tree(id uint64, depth int, within bounds) error {
	if id < 2 || id >= f.high || depth > maxDepth {
		return fmt.Errorf("page %d at depth %d is out of range", id, depth)
	}
	p, err := f.read(id*f.size, f.size)
	if err != nil {
		return err
	}
	overflow := uint64(order.Uint32(p[12:]))
	if order.Uint64(p) != id || overflow >= f.high-id {
		return fmt.Errorf("page %d has a wrong header", id)
	}
	for i := id; i <= id+overflow; i++ {
		if f.used[i] {
			return fmt.Errorf("page %d is used twice", i)
		}
		f.used[i] = true
	}
	if overflow > 0 {
		if p, err = f.read(id*f.size, (overflow+1)*f.size); err != nil {
			return err
		}
	}
	return f.page(p, id, depth, within)
}

// page checks one page with its overflow, or one that stands within a value.
func (f *file) page(p []byte, id uint64, depth int, within bounds) error {
	flags, count := order.Uint16(p[8:]), int(order.Uint16(p[10:]))
	if pageHeader+count*element > len(p) || flags == flagBranch && count == 0 {
		return fmt.Errorf("page %d has %d elements", id, count)
	}
	if count == 0 && (depth > 0 && id != 0 || depth == 0 && !f.young) {
		return fmt.Errorf("page %d is empty", id)
	}
	var before []byte
	end := pageHeader + count*element // data follows without gaps, or elements are missing
	for i := range count {
		at := pageHeader + i*element
		e := p[at:]
		var key []byte
		var err error
		var pos, size uint32
		switch flags {
		case flagBranch:
			pos, size = order.Uint32(e), order.Uint32(e[4:])
			if key, err = slice(p, at, pos, 0, size); err == nil {
				err = f.tree(order.Uint64(e[8:]), depth+1, bounds{key, within.next(p, i, count)})
			}
		case flagLeaf:
			ksize := order.Uint32(e[8:])
			pos, size = order.Uint32(e[4:]), ksize+order.Uint32(e[12:])
			if key, err = slice(p, at, pos, 0, ksize); err == nil {
				err = f.value(p, at, pos, ksize, order.Uint32(e[12:]), order.Uint32(e), depth)
			}
		default:
			err = fmt.Errorf("flags %#x are unknown", flags)
		}
		if err == nil && at+int(pos) != end {
			err = errors.New("data is missing before it")
		}
		end += int(size)
		if err == nil && i > 0 && bytes.Compare(before, key) >= 0 {
			err = errors.New("keys are out of order")
		}
		if err == nil && !within.contain(key) {
			err = errors.New("a key is on the wrong page")
		}
		if err != nil {
			return fmt.Errorf("page %d, element %d: %w", id, i, err)
		}
		before = key
	}
	if id == 0 && end != len(p) {
		return errors.New("a bucket within a page has data that belongs to nothing")
	}
	if flags != flagBranch && flags != flagLeaf {
		return fmt.Errorf("page %d: flags %#x are unknown", id, flags)
	}
	return nil
}

func (f *file) value(p []byte, at int, pos, ksize, vsize, flags uint32, depth int) error {
	v, err := slice(p, at, pos, ksize, vsize)
	switch {
	case err != nil || flags == 0:
		return err
	case flags != flagBucket || len(v) < bucketSize || depth > maxDepth:
		return errors.New("a bucket is damaged")
	}
	if root := order.Uint64(v); root != 0 {
		return f.tree(root, depth+1, bounds{})
	}
	if len(v) < bucketSize+pageHeader {
		return errors.New("a bucket is cut short")
	}
	return f.page(v[bucketSize:], 0, depth+1, bounds{})
}

// bounds are the keys that a page may hold: from the first to before the last,
// nil for any.
type bounds struct{ from, before []byte }

func (b bounds) contain(key []byte) bool {
	return (b.from == nil || bytes.Compare(b.from, key) <= 0) && (b.before == nil || bytes.Compare(key, b.before) < 0)
}

// next returns the key after element i of a branch page, which ends what its
// child may hold. If that key is damaged, its own turn comes.
func (b bounds) next(p []byte, i, count int) []byte {
	if i+1 == count {
		return b.before
	}
	at := pageHeader + (i+1)*element
	key, _ := slice(p, at, order.Uint32(p[at:]), 0, order.Uint32(p[at+4:]))
	return key
}

// slice returns size bytes that begin skip after pos, counted from the element.
func slice(p []byte, at int, pos, skip, size uint32) ([]byte, error) {
	from := uint64(at) + uint64(pos) + uint64(skip)
	if to := from + uint64(size); to <= uint64(len(p)) {
		return p[from:to], nil
	}
	return nil, errors.New("it reaches beyond its page")
}
