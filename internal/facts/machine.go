package facts

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"
)

// machine gathers the facts of the machine itself, each part by itself.
func (g *gatherer) machine(ctx context.Context) {
	for _, part := range []struct {
		name   string
		gather func(context.Context) (any, error)
	}{
		{"os", osFacts},
		{"host", hostFacts},
		{"cpu", cpuFacts},
		{"memory", memoryFacts},
		{"disks", diskFacts},
		{"network", networkFacts},
		{"go", goFacts},
	} {
		value, err := part.gather(ctx)
		g.fail(part.name+" of this machine", err)
		if value != nil {
			g.merge(part.name+" of this machine", map[string]any{part.name: value})
		}
	}
}

// known returns a map without the values that are empty texts, so that a
// selector such as cpu.model=* tells whether a fact is known.
func known(values map[string]any) map[string]any {
	for key, value := range values {
		if value == "" {
			delete(values, key)
		}
	}
	return values
}

func osFacts(ctx context.Context) (any, error) {
	kernel, errKernel := host.KernelVersionWithContext(ctx)
	arch, errArch := host.KernelArch()
	release, err := osRelease("/etc/os-release", "/usr/lib/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		// Not a Linux of this decade. The library knows older ones, and other
		// systems; it is second because it may start a process to find out.
		var platform, family, version string
		platform, family, version, err = host.PlatformInformationWithContext(ctx)
		release = map[string]string{"NAME": platform, "ID": platform, "ID_LIKE": family, "VERSION_ID": version}
	}
	return known(map[string]any{
		"name":    release["NAME"],
		"id":      release["ID"],
		"version": release["VERSION_ID"],
		"family":  osFamily(release["ID"], release["ID_LIKE"]),
		"kernel":  kernel,
		"arch":    arch,
	}), errors.Join(errKernel, errArch, err)
}

// osRelease reads the first of the files that exists. See os-release(5).
func osRelease(paths ...string) (map[string]string, error) {
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		pairs, err := parseKeyValue(data)
		if err != nil {
			return nil, err
		}
		release := make(map[string]string, len(pairs))
		for key, value := range pairs {
			release[key] = strings.Trim(value.(string), `"'`)
		}
		return release, nil
	}
	return nil, fs.ErrNotExist
}

// osFamily returns the family of a distribution by the names of those that it
// is like. Some name several: a Mint is like ubuntu and debian, a Rocky like
// rhel, centos and fedora.
func osFamily(id, like string) string {
	names := append(strings.Fields(like), id)
	for _, family := range []string{"debian", "rhel", "suse", "fedora", "arch", "gentoo"} {
		if slices.Contains(names, family) {
			return family
		}
	}
	return names[0]
}

func hostFacts(ctx context.Context) (any, error) {
	name, errName := os.Hostname()
	values := map[string]any{"name": name}
	boot, errBoot := host.BootTimeWithContext(ctx)
	if errBoot == nil {
		values["boot_time"] = time.Unix(int64(boot), 0).UTC().Format(time.RFC3339)
	}
	system, role, errVirtual := host.VirtualizationWithContext(ctx)
	switch {
	case errVirtual != nil:
	case role == "guest" && system != "":
		values["virtualization"] = system
	default: // a host of virtual machines is not one itself
		values["virtualization"] = "none"
	}
	// Only Linux has one, and the boot time serves elsewhere.
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		values["boot_id"] = strings.TrimSpace(string(id))
	}
	return known(values), errors.Join(errName, errBoot, errVirtual)
}

func cpuFacts(ctx context.Context) (any, error) {
	values := map[string]any{}
	cores, errCores := cpu.CountsWithContext(ctx, true)
	if cores > 0 {
		values["cores"] = int64(cores)
	}
	cpus, errModel := cpu.InfoWithContext(ctx)
	if len(cpus) > 0 {
		values["model"] = strings.Join(strings.Fields(cpus[0].ModelName), " ")
	}
	return known(values), errors.Join(errCores, errModel)
}

func memoryFacts(ctx context.Context) (any, error) {
	values := map[string]any{}
	memory, errMemory := mem.VirtualMemoryWithContext(ctx)
	if errMemory == nil {
		values["total_bytes"] = int64(memory.Total)
	}
	swap, errSwap := mem.SwapMemoryWithContext(ctx)
	if errSwap == nil {
		values["swap_bytes"] = int64(swap.Total)
	}
	return values, errors.Join(errMemory, errSwap)
}

// diskFacts lists the file systems on devices. Network file systems are not
// among them, also because asking a lost server for its size never returns.
func diskFacts(ctx context.Context) (any, error) {
	partitions, err := disk.PartitionsWithContext(ctx, false)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(partitions, func(a, b disk.PartitionStat) int { return strings.Compare(a.Mountpoint, b.Mountpoint) })
	list := []any{}
	var errs []error
	for _, p := range partitions {
		if p.Fstype == "squashfs" {
			continue // images of packages, which come and go with their updates
		}
		values := map[string]any{"mount": p.Mountpoint, "device": p.Device, "fs": p.Fstype}
		switch usage, err := disk.UsageWithContext(ctx, p.Mountpoint); {
		case err == nil:
			values["total_bytes"] = int64(usage.Total)
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission):
			// The list is that of the machine; an agent in a sandbox need not
			// see all of it.
		default:
			errs = append(errs, err)
		}
		list = append(list, values)
	}
	return list, errors.Join(errs...)
}

func networkFacts(context.Context) (any, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(interfaces, func(a, b net.Interface) int { return strings.Compare(a.Name, b.Name) })
	list, global := []any{}, []any{}
	var errs []error
	for _, i := range interfaces {
		// A veth is the near end of a container's interface; it comes and goes
		// with the container.
		if i.Flags&net.FlagLoopback != 0 || strings.HasPrefix(i.Name, "veth") {
			continue
		}
		addresses, err := i.Addrs()
		errs = append(errs, err)
		own := []any{}
		for _, a := range addresses {
			prefix, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			address := prefix.IP.String()
			own = append(own, address)
			if prefix.IP.IsGlobalUnicast() && !slices.Contains(global, any(address)) {
				global = append(global, address)
			}
		}
		list = append(list, known(map[string]any{"name": i.Name, "mac": i.HardwareAddr.String(), "addresses": own}))
	}
	return map[string]any{"interfaces": list, "addresses": global}, errors.Join(errs...)
}

func goFacts(context.Context) (any, error) {
	return map[string]any{"os": runtime.GOOS, "arch": runtime.GOARCH}, nil
}
