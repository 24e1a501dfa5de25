package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// A listing prints outcomes with their whole output, one after the other, as
// one document. What it holds in memory does not grow with the output.
type listing struct {
	p       *program
	c       SDK
	printed int
	missing error // of the first output that could not be had
}

// add prints what became of a command. That its output cannot be had is in the
// document, and is returned by end: the others are printed all the same.
func (l *listing) add(ctx context.Context, s client.Status) error {
	o := outcomeOf(s)
	if s.Result == nil {
		return l.print(o, nil)
	}
	var holes []hole
	defer func() {
		for _, h := range holes {
			h.close()
		}
	}()
	for _, stream := range []struct {
		name      string
		out       muster.Output
		text, raw **string
	}{{"stdout", s.Result.Stdout, &o.Stdout, &o.StdoutBase64}, {"stderr", s.Result.Stderr, &o.Stderr, &o.StderrBase64}} {
		if stream.out.Size == 0 {
			continue
		}
		h := hole{name: "hole-" + rand.Text(), spool: &spool{}}
		holes = append(holes, h)
		if err := readOutput(ctx, l.c, s, stream.name, h.spool); err != nil {
			if ctx.Err() != nil || errors.Is(err, errSpool) {
				return err
			}
			l.lack(&o, err)
			continue
		}
		value := h.value()
		if h.isText() {
			*stream.text = &value
		} else {
			*stream.raw = &value
		}
	}
	return l.print(o, holes)
}

// lack notes that output of a command is not in the document.
func (l *listing) lack(o *outcome, err error) {
	l.missing = cmp.Or(l.missing, err)
	if o.OutputError != "" {
		o.OutputError += "; "
	}
	o.OutputError += message(err)
}

// A hole is a place in a document that is filled with what a spool holds. Small
// spools need none.
type hole struct {
	name string
	*spool
}

// value is what is encoded: the text itself if it is small.
func (h hole) value() string {
	switch {
	case h.file != nil:
		return h.name
	case h.isText():
		return string(h.small)
	}
	return base64.StdEncoding.EncodeToString(h.small)
}

func (l *listing) print(o outcome, holes []hole) error {
	doc, quote, err := l.encode(o)
	if err != nil {
		return err
	}
	l.printed++
	for _, h := range holes {
		before, after, found := bytes.Cut(doc, []byte(quote+h.name+quote))
		if !found {
			continue
		}
		if _, err := l.p.stdout.Write(before); err != nil {
			return err
		}
		if err := h.writeQuoted(l.p.stdout, l.p.format == "yaml"); err != nil {
			return err
		}
		doc = after
	}
	_, err = l.p.stdout.Write(doc)
	return err
}

// encode returns an outcome as the next part of the document, and what stands
// around a text in it.
func (l *listing) encode(o outcome) (doc []byte, quote string, err error) {
	switch l.p.format {
	case "jsonl":
		doc, err = encode(o, "", "")
		return doc, `"`, err
	case "yaml": // lists one after the other are one list
		if doc, err = encode([]outcome{o}, "", ""); err == nil {
			doc, err = toYAML(doc)
		}
		return doc, "", err
	}
	open := "[\n  "
	if l.printed > 0 {
		open = ",\n  "
	}
	doc, err = encode(o, "  ", "  ")
	return append([]byte(open), bytes.TrimRight(doc, "\n")...), `"`, err
}

// end completes the document, whatever happened before.
func (l *listing) end() error {
	text := ""
	switch {
	case l.p.format == "jsonl":
	case l.printed == 0:
		text = "[]\n"
	case l.p.format == "json":
		text = "\n]\n"
	}
	if _, err := io.WriteString(l.p.stdout, text); err != nil {
		return err
	}
	return l.missing
}

// escapeForYAML escapes what JSON leaves as it is and YAML does not allow, or
// takes for the end of a line.
func escapeForYAML(quoted []byte) []byte {
	special := func(r rune) bool {
		return r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfeff || r == 0xfffe || r == 0xffff
	}
	if !bytes.ContainsFunc(quoted, special) {
		return quoted
	}
	var b []byte
	for _, r := range string(quoted) {
		if special(r) {
			b = fmt.Appendf(b, `\u%04x`, r)
		} else {
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}

// outcomes prints commands with their whole output, in a form for programs.
func (p *program) outcomes(ctx context.Context, c SDK, all []client.Status) error {
	l := &listing{p: p, c: c}
	for _, s := range all {
		if err := l.add(ctx, s); err != nil {
			return errors.Join(err, l.end())
		}
	}
	return l.end()
}
