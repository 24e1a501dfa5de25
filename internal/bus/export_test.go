package bus

// BeforeStep has f called before each change that Setup and Reshard make.
func (c *Conn) BeforeStep(f func()) { c.beforeStep = f }
