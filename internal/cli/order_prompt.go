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
	warned     bool          // there was a Ctrl-C since the last line; of the reader alone
	terminal   bool
	next       chan struct{} // the last line has been dealt with
	done       chan struct{}
	restore    func()
	editor     *term.Terminal // nil without a terminal
	name       string         // what the prompt says while it waits for a line
}

// working is the prompt while a command runs: what is typed then is a further line,
// and Ctrl-C does something else.
const working = "waiting, Ctrl-C stops> "

// newPrompt begins to read. close has to follow.
func (p *program) newPrompt(name string) *prompt {
	t := &prompt{program: p, lines: make(chan string), interrupts: make(chan struct{}, 1), next: make(chan struct{}, 1),
		done: make(chan struct{}), restore: func() {}, name: "order " + name + "> "}
	read := bufio.NewScanner(p.stdin)
	readLine := func() (string, error) {
		if !read.Scan() {
			return "", io.EOF
		}
		return read.Text(), nil
	}
	if in, ok := p.stdin.(*os.File); ok && p.inTerm && p.errTerm.is {
		if state, err := term.MakeRaw(int(in.Fd())); err == nil {
			readLine = t.edit(in, os.Stderr)
			t.restore = func() {
				t.show("")
				_, _ = os.Stderr.WriteString("\r\x1b[K") // what follows does not stand behind a prompt
				_ = term.Restore(int(in.Fd()), state)
			}
		}
	}
	// Nothing can take a read of the terminal back, so that this ends with the
	// program and nobody waits for it.
	go t.read(readLine)
	return t
}

// edit makes the prompt one with line editing, on a terminal in raw mode.
func (t *prompt) edit(in io.Reader, out io.Writer) func() (string, error) {
	keys := &keyboard{in: in, interrupted: t.interrupt}
	editor := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{keys, out}, t.name)
	if in, ok := in.(*os.File); ok {
		if width, height, err := term.GetSize(int(in.Fd())); err == nil && width > 0 {
			_ = editor.SetSize(width, height) // a size that it does not take is not used
		}
	}
	p := *t.program
	p.stderr = editor
	if p.outTerm.is {
		p.stdout = editor
	}
	t.program, t.editor, t.terminal = &p, editor, true
	return editor.ReadLine
}

// show draws another prompt in place of the one that is there.
func (t *prompt) show(text string) {
	if t.editor == nil {
		return
	}
	t.editor.SetPrompt(text)
	_, _ = t.editor.Write(nil) // there is nowhere else to say it
}

// interrupt takes a Ctrl-C: during a command it ends the waiting, at the prompt
// the session. There it has to come twice: the command for which it was meant may
// have ended at this moment, and the machines would be let go.
func (t *prompt) interrupt() (leave bool) {
	select {
	case <-t.next: // the prompt waits for a line
		t.next <- struct{}{}
		if !t.warned {
			t.program.say("Ctrl-C again lets go, and so does Ctrl-D")
		}
		leave, t.warned = t.warned, true
		return leave
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
		t.warned = false
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		select {
		case <-t.next:
		case <-t.done:
			return
		}
		t.show(working) // before the next line is read, which draws it
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
	t.show(t.name)
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
