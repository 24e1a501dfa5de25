package cli

import (
	"bufio"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// A prompt reads the lines of a session: from a terminal, with editing, or from
// a file or pipe.
type prompt struct {
	program    *program      // prints so that the line being typed stays whole
	lines      chan string   // closed at the end of the input
	interrupts chan struct{} // Ctrl-C, while a command runs
	terminal   bool
	next       chan struct{} // the last line has been dealt with
	done       chan struct{}
	restore    func()
}

// newPrompt begins to read. close has to follow.
func (p *program) newPrompt(name string) *prompt {
	t := &prompt{program: p, lines: make(chan string), interrupts: make(chan struct{}, 1), next: make(chan struct{}, 1),
		done: make(chan struct{}), restore: func() {}}
	read := bufio.NewScanner(p.stdin)
	readLine := func() (string, error) {
		if !read.Scan() {
			return "", io.EOF
		}
		return read.Text(), nil
	}
	if in, ok := p.stdin.(*os.File); ok && p.inTerm && p.errTerm.is {
		if state, err := term.MakeRaw(int(in.Fd())); err == nil {
			t.restore = func() {
				_ = term.Restore(int(in.Fd()), state)
				p.say("") // what follows does not stand behind the prompt
			}
			readLine = t.edit(in, name)
		}
	}
	// Nothing can take a read of the terminal back, so that this ends with the
	// program and nobody waits for it.
	go t.read(readLine)
	return t
}

// edit makes the prompt one with line editing, on a terminal in raw mode.
func (t *prompt) edit(in *os.File, name string) func() (string, error) {
	keys := &keyboard{in: in, interrupted: t.interrupt}
	editor := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{keys, os.Stderr}, "order "+name+"> ")
	if width, height, err := term.GetSize(int(in.Fd())); err == nil && width > 0 {
		_ = editor.SetSize(width, height) // a size that it does not take is not used
	}
	p := *t.program
	p.stderr = editor
	if p.outTerm.is {
		p.stdout = editor
	}
	t.program, t.terminal = &p, true
	return editor.ReadLine
}

// interrupt takes a Ctrl-C: during a command it ends the waiting, at the prompt
// the session.
func (t *prompt) interrupt() (leave bool) {
	select {
	case <-t.next: // the prompt waits for a line
		t.next <- struct{}{}
		return true
	default:
	}
	select {
	case t.interrupts <- struct{}{}:
	default:
	}
	return false
}

func (t *prompt) read(readLine func() (string, error)) {
	defer close(t.lines)
	t.next <- struct{}{}
	for {
		line, err := readLine()
		if err != nil {
			return
		}
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		select {
		case <-t.next:
		case <-t.done:
			return
		}
		select {
		case t.lines <- line:
		case <-t.done:
			return
		}
	}
}

// ready says that the last line has been dealt with.
func (t *prompt) ready() {
	select {
	case <-t.interrupts: // came too late
	default:
	}
	t.next <- struct{}{}
}

func (t *prompt) close() {
	close(t.done)
	t.restore()
}

// A keyboard passes on what is typed, without Ctrl-C.
type keyboard struct {
	in          io.Reader
	interrupted func() (leave bool)
}

const (
	ctrlC = 3
	ctrlU = 21 // clears the line
)

func (k *keyboard) Read(b []byte) (int, error) {
	n, err := k.in.Read(b)
	for i, c := range b[:n] {
		if c != ctrlC {
			continue
		}
		b[i] = ctrlU
		if k.interrupted() {
			return 0, io.EOF
		}
	}
	return n, err
}
