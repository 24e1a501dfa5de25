package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/participant"
	"github.com/musterfleet/muster/internal/seal"
)

// An orderLab is a constellation on loopback, with agents in this process.
type orderLab struct {
	c      constellation.Constellation
	agents map[string]*labAgent
}

type labAgent struct {
	agent *participant.Agent
	addr  string
	stop  func()
}

// newOrderLab starts agents that know each other, and writes the files of the
// constellation.
func newOrderLab(dir, config string, names ...string) (*orderLab, error) {
	c, o, err := constellation.Generate("lab", rand.Reader)
	if err != nil {
		return nil, err
	}
	if c.Hint, err = order.SignHint(order.Hint{IssuedAt: 1, URLs: []string{"tls://broker.test:4222"}}, c.Key, o.PrivateKey()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(config, 0o700); err != nil {
		return nil, err
	}
	if err := errors.Join(c.Write(filepath.Join(config, constellationFile)), o.Write(filepath.Join(config, operatorFile))); err != nil {
		return nil, err
	}
	l := &orderLab{c: c, agents: map[string]*labAgent{}}
	var peers []string
	for _, name := range names {
		a, err := l.start(filepath.Join(dir, name), name, peers)
		if err != nil {
			return l, err
		}
		l.agents[name] = a
		peers = append(peers, a.addr)
	}
	return l, nil
}

func (l *orderLab) start(dir, name string, peers []string) (*labAgent, error) {
	box, err := seal.New(l.c.Key, l.c.Secret.Reveal(), rand.Reader)
	if err != nil {
		return nil, err
	}
	network, err := participant.OpenLAN(lan.Options{Box: box, Host: "127.0.0.1", Unicast: true, Peers: peers})
	if err != nil {
		return nil, err
	}
	network.PassOn()
	journal, err := participant.OpenJournal(dir)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	copy(id[:], name+"----------------")
	agent, err := participant.NewAgent(participant.AgentOptions{Cluster: l.c.Key, Operators: l.c.Operators, ID: id, Name: name,
		Labels:   map[string]string{"role": strings.TrimRight(name, "0123456789")},
		Hints:    [][]byte{l.c.Hint},
		Carriers: []participant.Carrier{network}, Port: uint16(network.Port()), LockFolder: filepath.Join(dir, "lock"), Journal: journal,
		Host: onsite.Host{BrokerFile: filepath.Join(dir, "broker")}, Program: "test"})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = agent.Run(ctx) }) // an error of it shows as an agent that does not answer
	stop := sync.OnceFunc(func() {
		cancel()
		running.Wait()
		_ = journal.Close()
	})
	return &labAgent{agent, network.LocalAddr(), stop}, nil
}

func (l *orderLab) stop() {
	for _, a := range l.agents {
		a.stop()
	}
}

// linked reports whether every agent knows all others.
func (l *orderLab) linked() bool {
	for _, a := range l.agents {
		peers, err := a.agent.Peers(context.Background())
		if err != nil || len(peers) < len(l.agents)-1 {
			return false
		}
	}
	return true
}

// soon polls until something is true.
func soon(what string, is func() bool) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return nil
		}
	}
	return fmt.Errorf("after a minute there is no %s", what)
}

type labKey struct{}

func labOf(ts *testscript.TestScript) *orderLab { return ts.Value(labKey{}).(*orderLab) }

// TestOrder runs scripts against three agents: web1, web2 and db1. $PEER is the
// address of web1, $PEER2 that of web2.
func TestOrder(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/order",
		Setup: func(e *testscript.Env) error {
			config := filepath.Join(e.WorkDir, "config")
			l, err := newOrderLab(filepath.Join(e.WorkDir, "agents"), config, "web1", "web2", "db1")
			if l != nil {
				e.Defer(l.stop)
			}
			if err != nil {
				return err
			}
			e.Values[labKey{}] = l
			// A socket's path must be short, wherever temporary files are.
			runtime, err := os.MkdirTemp("/tmp", "order")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(runtime) })
			e.Setenv("MUSTER_CONFIG", config)
			e.Setenv("XDG_RUNTIME_DIR", runtime)
			e.Setenv("SESSIONS", runtime)
			e.Setenv("ELSEWHERE", filepath.Join(runtime, "elsewhere"))
			e.Setenv("PEER", l.agents["web1"].addr)
			e.Setenv("PEER2", l.agents["web2"].addr)
			return soon("link between all agents", l.linked)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// in STATE waits until all agents that run are in a state.
			"in": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(soon("agreement on "+args[0], func() bool {
					for _, a := range labOf(ts).agents {
						if a.agent.Status().State.String() != args[0] {
							return false
						}
					}
					return true
				}))
			},
			// called ARGS runs 'muster order ARGS', again when not all machines answered
			// the call: who has no CPU for the three seconds of a call is in the next one.
			"called": func(ts *testscript.TestScript, fails bool, args []string) {
				ts.Check(soon("call that all machines answer", func() bool {
					err := ts.Exec("muster", append([]string{"order"}, args...)...)
					for _, late := range []string{"no machine joined", "did not join", "answers within", "are in order"} {
						if strings.Contains(ts.ReadFile("stderr"), late) {
							return false
						}
					}
					if (err != nil) != fails {
						ts.Fatalf("order %q: %v", args, err)
					}
					return true
				}))
			},
			// down NAME stops an agent.
			"down": func(ts *testscript.TestScript, _ bool, args []string) {
				l := labOf(ts)
				l.agents[args[0]].stop()
				delete(l.agents, args[0])
			},
			// session waits until a session is open.
			"session": func(ts *testscript.TestScript, _ bool, _ []string) {
				ts.Check(soon("session", func() bool {
					found, err := filepath.Glob(filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "muster", "*.sock"))
					if err != nil || len(found) != 1 {
						return false
					}
					g := participant.JoinSession(found[0])
					if g == nil {
						return false
					}
					_, err = g.Holding(context.Background())
					return err == nil
				}))
			},
		},
	})
}

func TestSplitWords(t *testing.T) {
	for line, want := range map[string][]string{
		"":                         nil,
		"  run  uptime ":           {"run", "uptime"},
		`run echo 'a  b' "c d"e`:   {"run", "echo", "a  b", "c de"},
		`run echo "" a\ b '\'`:     {"run", "echo", "", "a b", `\`},
		`on 'role=web and x' sh x`: {"on", "role=web and x", "sh", "x"},
	} {
		got, starts, err := splitWords(line)
		if err != nil || !reflect.DeepEqual(got, want) || len(starts) != len(got) {
			t.Errorf("%q: got %q at %v (%v), want %q", line, got, starts, err, want)
		}
	}
	for _, line := range []string{`"a`, `'a`, `a\`} {
		if got, _, err := splitWords(line); err == nil {
			t.Errorf("%q: got %q, want an error", line, got)
		}
	}
}

func FuzzSplitWords(f *testing.F) {
	f.Add(`on 'role=web' sh echo "a b" \c`)
	f.Fuzz(func(t *testing.T, line string) {
		words, starts, err := splitWords(line)
		if err != nil {
			return
		}
		if len(words) != len(starts) {
			t.Fatalf("%q: %d words at %d places", line, len(words), len(starts))
		}
		for i, at := range starts {
			if at < 0 || at >= len(line) || i > 0 && at <= starts[i-1] {
				t.Fatalf("%q: word %d at %d", line, i, at)
			}
		}
	})
}

func TestSessionQuestions(t *testing.T) {
	s := &session{}
	for line, want := range map[string]onsite.Script{
		"run uname -a":                     {Argv: []string{"uname", "-a"}},
		"on bash sh echo '$HOME' | cat":    {Script: "echo '$HOME' | cat"},
		`on "x or y" run echo "two words"`: {Argv: []string{"echo", "two words"}},
	} {
		words, starts, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		_, q, err := s.question(line, words, starts)
		if err != nil || len(q.args) != 1 {
			t.Errorf("%s: %v, %v", line, q, err)
			continue
		}
		got, err := onsite.DecodeScript(q.args[0])
		if err != nil || strings.Join(got.Argv, "|") != strings.Join(want.Argv, "|") || got.Script != want.Script {
			t.Errorf("%s: got %+v (%v), want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"on x", "rum x", "run", "query nothing", "on ( run x", "query put", "query logs a b", "query logs a 0"} {
		words, starts, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		if _, q, err := s.question(line, words, starts); exitCode(err) != ExitUsage {
			t.Errorf("%s: %v, %v", line, q, err)
		}
	}
}

func TestAnswerCodes(t *testing.T) {
	answer := func(c order.Code) memberAnswer {
		return memberAnswer{who: participant.Who{Code: c}, failed: c != order.OK}
	}
	ok := []memberAnswer{answer(order.OK)}
	for _, test := range []struct {
		all    []memberAnswer
		absent order.Code
		target string
		want   int
	}{
		{ok, order.NotSelected, "", ExitOK},
		{ok, order.Clock, "", ExitFailed},
		{ok, order.Clock, "role=web", ExitFailed},
		{ok, order.NoAnswer, "", ExitFailed},
		{ok, order.NoAnswer, "we*", ExitFailed},
		{ok, order.NoAnswer, "db1", ExitOK},
		{ok, order.NoAnswer, "role=web", ExitOK},
		{[]memberAnswer{answer(order.OK), answer(order.Failed)}, order.NotSelected, "", ExitFailed},
		{[]memberAnswer{answer(order.OK), answer(order.Late)}, order.NotSelected, "", ExitPending},
		{[]memberAnswer{answer(order.Denied)}, order.NotSelected, "", ExitDenied},
		{[]memberAnswer{answer(order.Denied), answer(order.OK)}, order.NotSelected, "", ExitFailed},
	} {
		missed := missing([]participant.Who{{Name: "web1", Code: test.absent}}, test.target)
		if got := answerCode(test.all, missed); got != test.want {
			t.Errorf("%v, %v, %q: got %d, want %d", test.all, test.absent, test.target, got, test.want)
		}
	}
}

func TestChanges(t *testing.T) {
	known := map[string]neighbour{}
	step := func(now ...neighbour) string {
		var all []string
		for _, c := range changes(known, now) {
			all = append(all, c.Node+" "+c.text())
		}
		return strings.Join(all, ", ")
	}
	idle := neighbour{Name: "a", ID: "1", State: "idle"}
	called, locked := idle, idle
	called.State, called.Order = "call", "0123456789abcdef"
	locked.State, locked.Order, locked.Holder = "order", "0123456789abcdef", "ada"
	op := neighbour{Name: "ada", ID: "9", State: "caller"}
	for _, s := range []struct {
		now  []neighbour
		want string
	}{
		{[]neighbour{{ID: "1", State: "idle"}}, ""},
		{[]neighbour{idle}, "a up"},
		{[]neighbour{idle}, ""},
		{[]neighbour{called, op}, "a called order 0123456789ab, ada operator up"},
		{[]neighbour{locked, op}, "a locked order 0123456789ab of ada"},
		{[]neighbour{idle}, "a freed order 0123456789ab of ada, ada operator down"},
		{nil, "a down"},
		{[]neighbour{locked}, "a up, a locked order 0123456789ab of ada"},
	} {
		if got := step(s.now...); got != s.want {
			t.Errorf("got %q, want %q", got, s.want)
		}
	}
}

func TestUnseen(t *testing.T) {
	a, b, op := neighbour{Name: "a", State: "idle"}, neighbour{Name: "b", State: "order", Reaches: 1}, neighbour{Name: "op", State: "caller", Reaches: 9}
	three := neighbour{Name: "c", State: "idle", Reaches: 3}
	for _, test := range []struct {
		all  []neighbour
		want string
	}{
		{[]neighbour{a, op}, ""},
		{[]neighbour{b, op}, "b has 1 neighbour that is not shown; it takes part all the same"},
		{[]neighbour{a, b}, ""},
		{[]neighbour{three}, "c has 3 neighbours that are not shown; they take part all the same"},
		{[]neighbour{b, three}, "c has 2 neighbours that are not shown; they take part all the same"},
	} {
		if got := unseen(test.all); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestOperatorLines(t *testing.T) {
	agent := func(state, id string) neighbour { return neighbour{Name: "a", State: state, Order: id} }
	caller := func(name, id string) neighbour { return neighbour{Name: name, State: "caller", Order: id} }
	const one, two = "111111111111aaaa", "222222222222bbbb"
	for _, test := range []struct {
		name    string
		agents  []neighbour
		callers []neighbour
		want    string
	}{
		{"who only looks", []neighbour{agent("idle", "")}, []neighbour{caller("x", "")}, ""},
		{"holds", []neighbour{agent("order", one), agent("call", one)}, []neighbour{caller("x", one)}, "operator x holds order 111111111111"},
		{"calls", []neighbour{agent("call", one)}, []neighbour{caller("x", one)}, "operator x calls to order 111111111111"},
		{"released before", []neighbour{agent("order", one)}, []neighbour{caller("x", one), caller("y", two)},
			"operator x holds order 111111111111\noperator y was last heard of in order 222222222222, which none of these machines is in"},
	} {
		if got := strings.Join(operatorLines(constellationStatus{Agents: test.agents, Callers: test.callers}), "\n"); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// Help is a table, which is not wrapped as one line of text.
func TestSessionHelpStaysAsItIs(t *testing.T) {
	var out strings.Builder
	s := &session{p: &program{stderr: &out, errTerm: terminal{is: true, width: 80}}}
	if err := s.command(t.Context(), "help", nil); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "  ") || len(line) > 80 {
			t.Errorf("%q", line)
		}
	}
	if !strings.Contains(out.String(), "\n      get PATH ") {
		t.Errorf("got:\n%s", out.String())
	}
}

func TestWhatIsNotUnderstoodSaysWhatToType(t *testing.T) {
	s := &session{}
	for line, want := range map[string]string{
		"uptime -p": "a program is run with 'run uptime -p'",
		"rum x":     "did you mean run?",
		"run":       "'help' shows what has to follow",
	} {
		words, starts, err := splitWords(line)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.question(line, words, starts); !strings.Contains(hintOf(err), want) {
			t.Errorf("%s: the hint is %q, want %q", line, hintOf(err), want)
		}
	}
}

// Those who did not join are named, or it is said why they are not.
func TestSayAbsent(t *testing.T) {
	var out strings.Builder
	p := &program{stderr: &out}
	p.sayAbsent([]participant.Who{{Name: "a", Code: order.NoAnswer}, {Code: order.NoAnswer}, {Name: "b", Code: order.NotSelected}})
	want := "warning: a did not join: no answer\n" +
		"warning: 0000000000000000 did not join: no answer; others heard it less than a minute ago, and its name is not known here\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// What counts the answers would stand in front of the lines of less or grep.
func TestAnswersAreCountedOnATerminalOnly(t *testing.T) {
	for _, test := range []struct {
		out, err bool
		want     string
	}{{true, true, "0/3 answered"}, {false, true, ""}, {true, false, ""}} {
		var errs strings.Builder
		s := &asking{p: &program{stderr: &errs, outTerm: terminal{is: test.out}, errTerm: terminal{is: test.err}}, members: 3}
		if s.progress(); errs.String() != test.want {
			t.Errorf("stdout a terminal: %t, stderr: %t: got %q, want %q", test.out, test.err, errs.String(), test.want)
		}
	}
}

// The prompt says whether a command runs, and leaves nothing behind.
func TestThePromptSaysWhetherACommandRuns(t *testing.T) {
	typed, keys := io.Pipe()
	screen := &screen{changed: make(chan struct{}, 1)}
	p := &prompt{program: &program{}, lines: make(chan string), interrupts: make(chan struct{}, 1), next: make(chan struct{}, 1),
		done: make(chan struct{}), restore: func() {}, name: "order 123456> "}
	go p.read(p.edit(typed, screen))
	screen.await(t, "order 123456> ")
	if _, err := keys.Write([]byte("run x\r")); err != nil {
		t.Fatal(err)
	}
	if line := <-p.lines; line != "run x" {
		t.Fatalf("got %q", line)
	}
	screen.await(t, "run x\r\n"+working)
	p.ready()
	screen.await(t, "\x1b[Korder 123456> ")
	p.show("")
	screen.await(t, "\x1b[K")
	p.close()
	_ = keys.Close()
	for range p.lines { // the reader ends
	}
}

// A screen keeps what is written to it.
type screen struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(b)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return len(b), nil
}

// await waits until the screen ends with a text.
func (s *screen) await(t *testing.T, end string) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		s.mu.Lock()
		text := s.text.String()
		s.mu.Unlock()
		if strings.HasSuffix(text, end) {
			return
		}
		select {
		case <-s.changed:
		case <-timeout:
			t.Fatalf("the screen has %q, and does not end with %q", text, end)
		}
	}
}

func TestFileNamesOfMachinesStayInTheFolder(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"..", ".", "../x", "/etc", "a\x00b"} {
		m := memberAnswer{Node: name, ID: "01"}
		to, err := saveFile(dir, m, "/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		if rel, err := filepath.Rel(dir, to); err != nil || strings.HasPrefix(rel, "../") || filepath.Dir(rel) == "." {
			t.Errorf("%q is written to %s", name, to)
		}
	}
}

func TestCtrlCTwiceAtThePromptLeavesAndDuringACommandStopsWaiting(t *testing.T) {
	var said strings.Builder
	p := &prompt{program: &program{stderr: &said}, interrupts: make(chan struct{}, 1), next: make(chan struct{}, 1)}
	read := func() (string, error) {
		b := make([]byte, 10)
		n, err := (&keyboard{in: strings.NewReader("ab\x03"), interrupted: p.interrupt}).Read(b)
		return string(b[:n]), err
	}
	if got, err := read(); got != "ab\x15" || err != nil || len(p.interrupts) != 1 {
		t.Errorf("during a command: %q, %v, %d interrupts", got, err, len(p.interrupts))
	}
	p.ready()
	if len(p.interrupts) != 0 {
		t.Error("an interrupt that came too late is kept")
	}
	if got, err := read(); got != "ab\x15" || err != nil || len(p.interrupts) != 0 || said.String() != "Ctrl-C again lets go, and so does Ctrl-D\n" {
		t.Errorf("at the prompt: %q, %v, %d interrupts, %q", got, err, len(p.interrupts), said.String())
	}
	if got, err := read(); err != io.EOF || len(p.interrupts) != 0 {
		t.Errorf("again at the prompt: %q, %v, %d interrupts", got, err, len(p.interrupts))
	}
}
