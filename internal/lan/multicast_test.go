package lan

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// helper makes the test binary an agent: its value is the agent's name, and names
// of interfaces after it.
const helper = "MUSTER_LAN_TEST_AGENT"

func TestMain(m *testing.M) {
	if words := strings.Fields(os.Getenv(helper)); len(words) > 0 {
		if err := speak(words[0], words[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// speak says its name to the group again and again, and writes down who it hears
// and on which interfaces, until stdin ends.
func speak(name string, interfaces []string) error {
	c, err := Open(Options{Box: newBox(&testing.T{}, "lab"), Port: DefaultPort, Interfaces: interfaces})
	if err != nil {
		return err
	}
	c.bounds.look, c.bounds.unreachable = time.Second, time.Second
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			c.Multicast([]byte(name))
			for _, s := range c.sockets {
				s.mu.Lock()
				for _, i := range s.joined {
					fmt.Printf("%s joined %s\n", s.family.network, i.Name)
				}
				s.mu.Unlock()
			}
			<-tick.C
		}
	}()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return c.Run(ctx, func(from Address, frame []byte) {
		text, overTCP := strings.CutPrefix(string(from), overTCP)
		a := netip.MustParseAddrPort(text)
		family := "udp4"
		if a.Addr().Is6() {
			family = "udp6"
		}
		if overTCP {
			fmt.Printf("%s large %s\n", family, bytes.TrimRight(frame, "."))
			return
		}
		fmt.Printf("%s heard %s port %d zone %q\n", family, frame, a.Port(), a.Addr().Zone())
		c.Send(from, []byte(name+strings.Repeat(".", 3000)))
	})
}

// A speaker is an agent in a network namespace, and what it wrote.
type speaker struct {
	lines chan string
	seen  map[string]int
}

// startSpeaker runs this binary as an agent.
func startSpeaker(t *testing.T, namespace, words string) *speaker {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", namespace, os.Args[0])
	cmd.Env = append(os.Environ(), helper+"="+words)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &speaker{lines: make(chan string, 100), seen: map[string]int{}}
	stop := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			select {
			case s.lines <- lines.Text():
			case <-stop:
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		_ = in.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("agent %s: %v", words, err)
		}
	})
	return s
}

// until waits for a line that matches.
func (s *speaker) until(t *testing.T, pattern string) {
	t.Helper()
	want := regexp.MustCompile("^" + pattern + "$")
	end := time.After(patience)
	for {
		select {
		case line := <-s.lines:
			s.seen[line]++
			if want.MatchString(line) {
				return
			}
		case <-end:
			t.Fatalf("%s did not come, but %v", pattern, s.seen)
		}
	}
}

// never tells that no line matched so far.
func (s *speaker) never(t *testing.T, pattern string) {
	t.Helper()
	bad := regexp.MustCompile("^" + pattern + "$")
	for line := range s.seen {
		if bad.MatchString(line) {
			t.Errorf("%s", line)
		}
	}
}

// namespaces makes network namespaces with no way out, or skips the test.
func namespaces(t *testing.T, names ...string) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces need the program ip of iproute2")
	}
	var all []string
	for _, n := range names {
		full := fmt.Sprintf("muster-lan-%d-%s", os.Getpid(), n)
		if out, err := exec.Command("ip", "netns", "add", full).CombinedOutput(); err != nil {
			t.Skipf("this machine makes no network namespace: %v %s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("ip", "netns", "del", full).CombinedOutput(); err != nil {
				t.Errorf("%v %s", err, out)
			}
		})
		ip(t, "-n", full, "link", "set", "lo", "up")
		all = append(all, full)
	}
	if out, err := exec.Command("ip", "-n", all[0], "link", "add", "probe", "type", "veth", "peer", "name", "probe2").CombinedOutput(); err != nil {
		t.Skipf("this machine makes no cable between network namespaces: %v %s", err, out)
	}
	ip(t, "-n", all[0], "link", "del", "probe")
	return all
}

// families are those that a namespace has.
func families(t *testing.T, namespace string) []string {
	t.Helper()
	disabled, err := exec.CommandContext(t.Context(), "ip", "netns", "exec", namespace, "cat", "/proc/sys/net/ipv6/conf/default/disable_ipv6").Output()
	if err != nil || strings.TrimSpace(string(disabled)) != "0" {
		t.Log("without IPv6, which this machine does not have")
		return []string{"udp4"}
	}
	return []string{"udp4", "udp6"}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %q: %v %s", args, err, out)
	}
}

// cable connects two namespaces.
func cable(t *testing.T, from, fromName, to, toName, net string) {
	t.Helper()
	ip(t, "-n", from, "link", "add", fromName, "type", "veth", "peer", "name", toName, "netns", to)
	ip(t, "-n", from, "addr", "add", net+".1/24", "dev", fromName)
	ip(t, "-n", to, "addr", "add", net+".2/24", "dev", toName)
	ip(t, "-n", from, "link", "set", fromName, "up")
	ip(t, "-n", to, "link", "set", toName, "up")
}

// TestMulticast runs agents in namespaces: a between b and c, with c's cable put
// in when all run, pulled, and put in again.
func TestMulticast(t *testing.T) {
	ns := namespaces(t, "a", "b", "c")
	cable(t, ns[0], "ab", ns[1], "ba", "10.99.1")
	cable(t, ns[0], "ab2", ns[1], "ba2", "10.99.9") // b is not told to use this one
	a := startSpeaker(t, ns[0], "alice")
	b := startSpeaker(t, ns[1], "bob ba")
	c := startSpeaker(t, ns[2], "carol")
	all := families(t, ns[0])
	for _, family := range all {
		a.until(t, family+` heard bob port 6776 zone "(ab)?"`)
		b.until(t, family+` heard alice port 6776 zone "(ba)?"`)
		a.until(t, family+` heard alice .*`) // loop is on
		a.until(t, family+` joined ab2`)
	}
	a.never(t, ".* carol .*")
	a.never(t, ".* joined lo")
	b.never(t, ".* joined ba2")
	for _, name := range []string{"ac", "again"} {
		cable(t, ns[0], name, ns[2], "ca", "10.99.2")
		for _, family := range all {
			a.until(t, family+" joined "+name)
			// What went before, over the old cable, may still stand in the queue.
			c.seen, a.seen = map[string]int{}, map[string]int{}
			a.until(t, family+" heard carol .*")
			c.until(t, family+" heard alice .*")
			c.until(t, family+" large alice") // to what may be a link-local address
			b.until(t, family+" heard alice .*")
		}
		b.never(t, ".* carol .*") // nothing is routed
		if name == "ac" {
			ip(t, "-n", ns[0], "link", "del", "ac")
		}
	}
}

// TestSocketsSayWhatTheyShould asks the system for what was set.
func TestSocketsSayWhatTheyShould(t *testing.T) {
	for host, f := range map[string]family{"127.0.0.1": ipv4Family, "::1": ipv6Family} {
		s, err := openSocket(f, netip.MustParseAddr(host), 0)
		if err != nil {
			t.Logf("%s: %v", host, err)
			continue
		}
		defer s.conn.Close()
		var loop bool
		var hops int
		if f.wildcard.Is4() {
			p := ipv4.NewPacketConn(s.conn)
			loop, _ = p.MulticastLoopback()
			hops, _ = p.MulticastTTL()
		} else {
			p := ipv6.NewPacketConn(s.conn)
			loop, _ = p.MulticastLoopback()
			hops, _ = p.MulticastHopLimit()
		}
		if !loop || hops != 1 {
			t.Errorf("%s: loop %v, hop limit %d", f.network, loop, hops)
		}
	}
}
