/** A fish that looks to the right, 24 wide and 16 high, its middle at (12, 8). */
export const FISH = 'M23.500 8C20 2.400 12 2 7.200 6.600L1.500 3.200c.9 1.700 1.400 3.200 1.400 4.800s-.5 3.100-1.400 4.800l5.700-3.400C12 14 20 13.600 23.500 8z'
