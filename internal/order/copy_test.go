package order

import (
	"encoding/binary"
	"reflect"
	"slices"
	"time"
	"unsafe"
)

// A copier makes a deep copy of a participant, so that a search can go on from
// one state in several ways. What is shared inside it is shared in the copy.
type copier map[unsafe.Pointer]reflect.Value

func deepCopy[T any](v T) T {
	c := copier{}
	return c.copy(reflect.ValueOf(&v).Elem()).Interface().(T)
}

// open returns a field as if it were exported.
func open(v reflect.Value) reflect.Value {
	if v.CanInterface() || !v.CanAddr() {
		return v
	}
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
}

var timeType = reflect.TypeFor[time.Time]()

// flat reports whether a value of the type refers to nothing that changes.
func flat(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return false
	case reflect.Struct:
		for i := range t.NumField() {
			if t != timeType && !flat(t.Field(i).Type) {
				return false
			}
		}
	case reflect.Array:
		return flat(t.Elem())
	}
	return true
}

func (c copier) copy(v reflect.Value) reflect.Value {
	v = open(v)
	t := v.Type()
	made := reflect.New(t).Elem()
	switch {
	case flat(t):
		made.Set(v)
	case t.Kind() == reflect.Slice && flat(t.Elem()):
		made.Set(reflect.AppendSlice(reflect.MakeSlice(t, 0, v.Len()), v))
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			return made
		}
		if old, ok := c[v.UnsafePointer()]; ok {
			return old
		}
		made = reflect.New(t.Elem())
		c[v.UnsafePointer()] = made
		made.Elem().Set(c.copyInto(v.Elem(), made.Elem()))
	case t.Kind() == reflect.Interface:
		if !v.IsNil() {
			made.Set(c.copy(v.Elem()))
		}
	case t.Kind() == reflect.Slice:
		if !v.IsNil() {
			made.Set(reflect.MakeSlice(t, v.Len(), v.Len()))
			for i := range v.Len() {
				made.Index(i).Set(c.copy(v.Index(i)))
			}
		}
	case t.Kind() == reflect.Map:
		if !v.IsNil() {
			made.Set(reflect.MakeMapWithSize(t, v.Len()))
			for it := v.MapRange(); it.Next(); {
				made.SetMapIndex(it.Key(), c.copy(it.Value()))
			}
		}
	default:
		c.copyInto(v, made)
	}
	return made
}

// copyInto fills a struct in place: pointers to it may be known already.
func (c copier) copyInto(v, made reflect.Value) reflect.Value {
	if v.Kind() != reflect.Struct {
		return c.copy(v)
	}
	for i := range v.NumField() {
		open(made.Field(i)).Set(c.copy(v.Field(i)))
	}
	return made
}

// apart are fields that tell states apart which behave alike: counters, random
// numbers, limits that the search does not come near, and what does not change.
var apart = []string{"rng", "count", "window", "cfg", "ready", "frames", "failed", "hints", "replies", "nonce", "calls", "flaws", "heard",
	"Node", "caller", "Signed", "Sig", "key", "start", "hello", "claimed", "Ask", "Answer",
	"hint", "checks", "news", "floor"}

// digest appends what matters of a value, with times relative to now.
func digest(b []byte, v reflect.Value, now time.Time) []byte {
	v = open(v)
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return append(b, 0)
		}
		return digest(append(b, 1), v.Elem(), now)
	case reflect.Struct:
		if v.Type() == timeType {
			at := v.Interface().(time.Time)
			if at.IsZero() {
				return append(b, 0)
			}
			return binary.AppendVarint(append(b, 1), int64(at.Sub(now)))
		}
		for i := range v.NumField() {
			if !slices.Contains(apart, v.Type().Field(i).Name) {
				b = digest(b, v.Field(i), now)
			}
		}
	case reflect.Slice, reflect.Array, reflect.String:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		for i := range v.Len() {
			b = digest(b, v.Index(i), now)
		}
	case reflect.Map:
		var all []string
		for it := v.MapRange(); it.Next(); {
			key := reflect.New(it.Key().Type()).Elem()
			key.Set(it.Key())
			all = append(all, string(digest(digest(nil, key, now), it.Value(), now)))
		}
		slices.Sort(all)
		for _, s := range all {
			b = append(b, s...)
		}
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		b = binary.AppendUvarint(b, v.Uint())
	case reflect.Int, reflect.Int64, reflect.Int32:
		b = binary.AppendVarint(b, v.Int())
	}
	return b
}
